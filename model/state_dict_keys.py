"""Converts state dicts between the published keys, used here and in open_clip, and those of Hugging Face's CLIPModel.

In and out: mappings of names to tensors. Values are unchanged: a round trip is bit-equal.

Besides the names, two things differ: Hugging Face stores the attention's input projection as three matrices (q, k, v), and both
output projections as weights of linear layers, (out, in). Shape suffixes: D width, E embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_PARTS = (
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # sic
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
)
_BLOCK_PARTS = (
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_QKV = ("q_proj", "k_proj", "v_proj")


def is_hugging_face(state: dict[str, Tensor]) -> bool:
    """True if the names are those of Hugging Face's CLIPModel, or of a part of one."""
    return any(key.startswith(("vision_model.", "text_model.")) for key in state)


def from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a CLIPModel's state dict to the published keys. Unknown names are kept, so that loading refuses them."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in _TRANSPOSED:
            ours[_TRANSPOSED[key]] = value.T.contiguous()  # (E, D) -> (D, E)
        elif key.endswith(".embeddings.position_ids"):
            pass  # 0, 1, 2, ...: older versions stored them with the weights
        elif ".self_attn.q_proj." in key and all(_sibling(key, part) in state for part in _QKV):
            joined = torch.cat([state[_sibling(key, part)] for part in _QKV])
            name = _replaced(key, 0).replace(".self_attn.q_proj.", ".attn.in_proj_")
            ours[name] = joined
        elif not any(f".self_attn.{part}." in key for part in _QKV[1:]) or _sibling(key, "q_proj") not in state:
            ours[_replaced(key, 0)] = value
    return ours


def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a ViT's state dict to the keys of CLIPModel, without SigLIP's logit_bias, which CLIPModel does not have."""
    theirs: dict[str, Tensor] = {}
    transposed = {ours: theirs for theirs, ours in _TRANSPOSED.items()}
    for key, value in state.items():
        if key in transposed:
            theirs[transposed[key]] = value.T.contiguous()  # (D, E) -> (E, D)
        elif ".attn.in_proj_" in key:
            for part, piece in zip(_QKV, value.chunk(3), strict=True):
                theirs[_replaced(key, 1).replace(".attn.in_proj_", f".self_attn.{part}.")] = piece.clone()
        elif key != "logit_bias":
            theirs[_replaced(key, 1)] = value
    return theirs


def _replaced(key: str, side: int) -> str:
    """Renames a key, except for the attention's input. side 0: from Hugging Face's to ours; 1: from ours to theirs."""
    for pair in _FIRST_PARTS:
        if key.startswith(pair[side]):
            key = pair[1 - side] + key.removeprefix(pair[side])
            break
    if ".layers." in key or ".resblocks." in key:
        for pair in _BLOCK_PARTS:
            key = key.replace(pair[side], pair[1 - side])
    return key


def _sibling(key: str, part: str) -> str:
    """The key of the q, k or v parameter that belongs to another one of them."""
    head, _, tail = key.partition(".self_attn.")
    return f"{head}.self_attn.{part}.{tail.partition('.')[2]}"

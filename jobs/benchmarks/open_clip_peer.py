"""Model and optimizer of open_clip's side, as its own trainer creates them. Needs the `test` extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.clip import CLIP
from training.config import OptimizerConfig

if TYPE_CHECKING:
    import torch


def build_peer(clip: CLIP, output_dict: bool = False) -> Any:
    """open_clip's CLIP of the same architecture, with the same weights, ready to train."""
    import open_clip

    row = clip.architecture
    vision = {"image_size": row.image_size_px, "layers": row.vision_layers, "width": row.vision_width}
    text = {"context_length": row.context_length, "vocab_size": row.vocab_size}
    peer = open_clip.CLIP(
        embed_dim=row.embed_dim,
        vision_cfg=vision | {"patch_size": row.patch_size_px},
        text_cfg=text | {"width": row.text_width, "heads": row.text_heads, "layers": row.text_layers},
        quick_gelu=row.activation == "quick_gelu",
        output_dict=output_dict,
    )
    peer.load_state_dict(clip.state_dict())
    return peer.train()


def build_peer_optimizer(peer: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on all but gains and biases, which open_clip also recognises by their dimensions."""
    import torch

    decayed = [one for one in peer.parameters() if one.ndim >= 2]
    spared = [one for one in peer.parameters() if one.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )

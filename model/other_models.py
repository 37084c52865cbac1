"""Names models and files of tensors that are not a CLIP of the paper, by the names of their tensors.

In: names of tensors. Out: what they are, and what to do instead. A name is a help for people: a file without one is refused
too, by the names and shapes that the model lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherModel:
    """A kind of file that is recognised.

    Attributes:
        name: what it is, after "holds".
        patterns: regular expressions, each of which some name matches.
        even_in_a_clip: True if the file is refused even where both encoders of a CLIP are found.
    """

    name: str
    remedy: str
    patterns: tuple[str, ...]
    even_in_a_clip: bool = False


OPTIMIZER = OtherModel(
    "the state of an optimizer, no weights",
    "give the file of the model's weights, which its run saved beside it",
    (r"^optimizer/|(^|\.)(exp_avg|exp_avg_sq|momentum_buffer|square_avg|acc_delta|max_exp_avg_sq)$",),
)
_PARTS = "both encoders are needed: give the weights of the whole CLIP"
_IMAGE_ONLY = OtherModel("a CLIP's image encoder alone", _PARTS, ())
_TEXT_ONLY = OtherModel("a CLIP's text encoder alone", _PARTS, ())
# Forms in which a CLIP's weights are not its state dict
_FORMS = (
    OtherModel(
        "the flat parameters of FSDP",
        "save a whole state dict: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))",
        (r"(^|[._])_?flat_params?(_\d+)?$",),
        True,
    ),
    OtherModel(
        "a LoRA or another adapter, not whole weights",
        "merge it into its model, for example with peft's merge_and_unload(), and save that model's state_dict",
        (r"(^|[._])lora_[A-Za-z]+|\.base_layer\.|(^|\.)hada_w\d",),
        True,
    ),
    OtherModel(
        "quantised weights",
        "give the weights before quantisation, as float32, float16 or bfloat16",
        (
            r"\.(weight_scale|weight_scale_inv|input_scale|qweight|qzeros|scales|SCB|absmax|quant_map|quant_state\S*"
            r"|_packed_params\S*|weight_zero_point|weight_fake_quant\S*|activation_post_process\S*)(\.|$)",
        ),
        True,
    ),
    OtherModel(
        "weights that are parametrised again (weight norm, geometric parametrisation)",
        "fold it into the weights (torch.nn.utils.parametrize.remove_parametrizations) and save the state_dict",
        (r"(^|\.)parametrizations\.|\.weight_[gv]$|\.(c_fc|c_proj|in_proj|out_proj)\.(r|theta)$",),
        True,
    ),
)
_ONLY_CLIP = "only the CLIPs of model/config.py are supported: give the weights of one"
# Name, True if it has both encoders of a CLIP, patterns
_MODELS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("a SigLIP", True, (r"(^|\.)(vision_model\.head\.(probe|attention)|text_model\.head\.|visual\.trunk\.attn_pool\.)",)),
    ("a CoCa, which has a text decoder", True, (r"(^|\.)text_decoder\.", r"(^|\.)visual\.")),
    ("a CLIP with an image encoder of timm", True, (r"(^|\.)visual\.trunk\.",)),
    ("an EVA-CLIP", True, (r"(^|\.)visual\.blocks\.\d+\.",)),
    (
        "a CLIP with a text encoder of Hugging Face",
        True,
        (r"(^|\.)text\.transformer\.(embeddings|encoder|shared|wte)\b", r"(^|\.)visual\."),
    ),
    ("a Chinese-CLIP", True, (r"(^|\.)visual\.", r"(^|\.)bert\.embeddings\.")),
    (
        "a CLIP with text layers of BERT or another model",
        True,
        (r"(^|\.)vision_model\.", r"(^|\.)(text_model|text_encoder)\.\S*(word_embeddings|query\.weight)"),
    ),
    ("a BLIP", False, (r"(^|\.)(visual_encoder|text_decoder|Qformer|qformer)\.",)),
    ("a Stable Diffusion checkpoint", False, (r"(^|\.)(model\.)?diffusion_model\.",)),
    (
        "a BERT or a model like it",
        False,
        (r"embeddings\.word_embeddings\.weight$", r"attention\.(self\.query|q_lin)\.weight$"),
    ),
    ("a T5", False, (r"(^|\.)encoder\.block\.0\.layer\.0\.SelfAttention\.",)),
    ("a GPT-2 or a model like it", False, (r"(^|\.)h\.0\.(attn\.c_attn|self_attention)\.",)),
    ("a language model such as Llama", False, (r"(^|\.)layers\.0\.self_attn\.q_proj\.", r"embed_tokens\.weight$")),
    ("a DINO or a ViT of timm", False, (r"(^|\.)patch_embed\.proj\.weight$", r"(^|\.)blocks\.\S*attn\.qkv\.")),
    ("a ViT of torchvision", False, (r"(^|\.)conv_proj\.weight$", r"encoder_layer_0\.self_attention\.")),
    (
        "a ViT of Hugging Face",
        False,
        (r"embeddings\.patch_embeddings\.projection\.weight$", r"attention\.(attention\.query|q_proj)\.weight$"),
    ),
    ("a ResNet of torchvision or timm", False, (r"(^|\.)layer1\.0\.conv1\.weight$", r"(^|\.)fc\.weight$")),
    ("a ConvNeXt", False, (r"(^|\.)stages\.0\.(blocks\.0\.conv_dw|layers\.0\.dwconv)\.",)),
    ("weights of flax or JAX", False, (r"(^|[./])(kernel|embedding)$", r"(^|[./])(scale|bias)$")),
)
_KINDS = (*_FORMS, *(OtherModel(name, _ONLY_CLIP, patterns, both) for name, both, patterns in _MODELS), OPTIMIZER)


def name_of_model(names: Iterable[str], has_image_encoder: bool, has_text_encoder: bool) -> OtherModel | None:
    """The first kind that the names match; None for a whole CLIP, and for tensors of no known kind."""
    text = "\n".join(names)
    for kind in _KINDS:
        if all(re.search(pattern, text, re.MULTILINE) for pattern in kind.patterns):
            return kind
    if has_image_encoder != has_text_encoder:
        return _IMAGE_ONLY if has_image_encoder else _TEXT_ONLY
    return None

"""Names models and files of tensors that are not a CLIP of the paper, by the names of their tensors.

In: names and tensors. Out: what they are, and what to do instead. A name is a help for people: a file without one is refused too,
by the names and shapes that the model lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


_ONLY_CLIP = "only the CLIPs of model/config.py are supported: give the weights of one"
_PARTS = "both encoders are needed: give the weights of the whole CLIP"
_FSDP = "save a whole state dict, with FullStateDictConfig or get_model_state_dict(options=StateDictOptions(full_state_dict=True))"
_MERGE = "merge it into its model, for example with peft's merge_and_unload(), and save that model's state_dict"
_DEQUANTISE = "give the weights before quantisation, as float32, float16 or bfloat16"
_MODELS = (
    OtherModel("the flat parameters of FSDP", _FSDP, (r"(^|[._])_?flat_params?(_\d+)?$",), True),
    OtherModel("a LoRA or another adapter, not whole weights", _MERGE, (r"\.?lora_[A-Za-z]+|\.base_layer\.|(^|\.)hada_w\d",), True),
    OtherModel(
        "quantised weights", _DEQUANTISE,
        (r"\.(weight_scale|weight_scale_inv|input_scale|qweight|qzeros|scales|SCB|absmax|quant_map|quant_state\S*|_packed_params\S*"
         r"|weight_zero_point|weight_fake_quant\S*|activation_post_process\S*)(\.|$)",), True,
    ),
    OtherModel(
        "weights that are parametrised again (weight norm, geometric parametrisation)",
        "fold the parametrisation into the weights (torch.nn.utils.parametrize.remove_parametrizations) and save the state_dict",
        (r"(^|\.)parametrizations\.|\.weight_[gv]$|\.(c_fc|c_proj|in_proj|out_proj)\.(r|theta)$",), True,
    ),
    OtherModel("a SigLIP", _ONLY_CLIP, (r"(^|\.)(vision_model\.head\.(probe|attention)|text_model\.head\.|visual\.trunk\.attn_pool\.)",),
               True),
    OtherModel("a CoCa, which has a text decoder", _ONLY_CLIP, (r"(^|\.)text_decoder\.", r"(^|\.)visual\."), True),
    OtherModel("a CLIP with an image encoder of timm", _ONLY_CLIP, (r"(^|\.)visual\.trunk\.",), True),
    OtherModel("an EVA-CLIP", _ONLY_CLIP, (r"(^|\.)visual\.blocks\.\d+\.",), True),
    OtherModel("a CLIP with a text encoder of Hugging Face", _ONLY_CLIP,
               (r"(^|\.)text\.transformer\.(embeddings|encoder|shared|wte)\b", r"(^|\.)visual\."), True),
    OtherModel("a Chinese-CLIP", _ONLY_CLIP, (r"(^|\.)visual\.", r"(^|\.)bert\.embeddings\."), True),
    OtherModel("a CLIP with text layers of BERT or another model", _ONLY_CLIP,
               (r"(^|\.)vision_model\.", r"(^|\.)(text_model|text_encoder)\.\S*(word_embeddings|query\.weight)"), True),
    OtherModel("a BLIP", _ONLY_CLIP, (r"(^|\.)(visual_encoder\.|text_decoder\.|Qformer\.|qformer\.)",)),
    OtherModel("a Stable Diffusion checkpoint", _ONLY_CLIP, (r"(^|\.)(model\.)?diffusion_model\.",)),
    OtherModel(
        "the state of an optimizer, no weights", "give the file of the model's weights, which its run saved beside it",
        (r"^optimizer/|(^|\.)(exp_avg|exp_avg_sq|momentum_buffer|square_avg|acc_delta|max_exp_avg_sq)$",),
    ),
    OtherModel("a BERT or a model like it", _ONLY_CLIP,
               (r"embeddings\.word_embeddings\.weight$", r"attention\.(self\.query|q_lin)\.weight$")),
    OtherModel("a T5", _ONLY_CLIP, (r"(^|\.)encoder\.block\.0\.layer\.0\.SelfAttention\.",)),
    OtherModel("a GPT-2 or a model like it", _ONLY_CLIP, (r"(^|\.)h\.0\.(attn\.c_attn|self_attention)\.",)),
    OtherModel("a language model such as Llama", _ONLY_CLIP, (r"(^|\.)layers\.0\.self_attn\.q_proj\.", r"embed_tokens\.weight$")),
    OtherModel("a DINO or a ViT of timm", _ONLY_CLIP, (r"(^|\.)patch_embed\.proj\.weight$", r"(^|\.)blocks\.\S*attn\.qkv\.")),
    OtherModel("a ViT of torchvision", _ONLY_CLIP, (r"(^|\.)conv_proj\.weight$", r"encoder_layer_0\.self_attention\.")),
    OtherModel("a ViT of Hugging Face", _ONLY_CLIP,
               (r"embeddings\.patch_embeddings\.projection\.weight$", r"attention\.attention\.query\.weight$")),
    OtherModel("a ResNet of torchvision or timm", _ONLY_CLIP, (r"(^|\.)layer1\.0\.conv1\.weight$", r"(^|\.)fc\.weight$")),
    OtherModel("a ConvNeXt", _ONLY_CLIP, (r"(^|\.)stages\.0\.(blocks\.0\.conv_dw|layers\.0\.dwconv)\.",)),
    OtherModel("weights of flax or JAX", "convert them to PyTorch with the tool that wrote them, and save the state_dict",
               (r"(^|[./])(kernel|embedding)$", r"(^|[./])(scale|bias)$")),
)  # fmt: skip
_IMAGE_ONLY = OtherModel("a CLIP's image encoder alone", _PARTS, ())
_TEXT_ONLY = OtherModel("a CLIP's text encoder alone", _PARTS, ())


def name_of_model(tensors: Mapping[str, Any], has_image_encoder: bool, has_text_encoder: bool) -> OtherModel | None:
    """The first kind that the names match; None for a whole CLIP, and for tensors of no known kind."""
    text = "\n".join(tensors)
    for kind in _MODELS:
        if all(re.search(pattern, text, re.MULTILINE) for pattern in kind.patterns):
            return kind
    if has_image_encoder != has_text_encoder:
        return _IMAGE_ONLY if has_image_encoder else _TEXT_ONLY
    return None

"""Writes and reads the configurations that open_clip and Hugging Face store beside weights.

In: an architecture, or a configuration that came with weights. Out: a configuration with which the other tool computes the
same features; or the facts that a configuration states about its weights, to be compared with an architecture. All
configurations are plain dictionaries.

Values that a configuration omits are the defaults of its own class, which have never changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from model.config import ARCHITECTURES, Activation, Architecture
from model.preprocess import MEAN, STD
from model.vocabulary import END_OF_TEXT, END_SYMBOL, START_OF_TEXT, START_SYMBOL, vocabulary

BICUBIC = 3
"""Pillow's number for the bicubic filter."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
HUGGING_FACE_CONFIG = "config.json"
HUGGING_FACE_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""The second is written by transformers 5, with the first one's content under `image_processor`."""
HUGGING_FACE_VOCABULARIES = ("vocab.json", "tokenizer.json")
CONFIGS = (OPEN_CLIP_CONFIG, HUGGING_FACE_CONFIG, *HUGGING_FACE_PREPROCESSORS, *HUGGING_FACE_VOCABULARIES)


@dataclass(frozen=True)
class Stated:
    """The facts that a configuration states about its weights.

    Attributes:
        source: name of the configuration's file.
        facts: fields of `Architecture`, except the image size, which follows from the weights themselves.
        image_size: the stated one, to be compared with the weights'.
    """

    source: str
    activation: Activation
    facts: dict[str, Any]
    image_size: Any


def open_clip_config(row: Architecture) -> dict[str, Any]:
    """open_clip_config.json, from which `open_clip.create_model("local-dir:FOLDER")` creates the same model (open_clip 3)."""
    layers = list(row.vision_layers) if isinstance(row.vision_layers, tuple) else row.vision_layers
    model: dict[str, Any] = {
        "embed_dim": row.embed_dim,
        "quick_gelu": row.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": row.image_size_px,
            "layers": layers,
            "width": row.vision_width,
            "patch_size": row.patch_size_px,
        },
        "text_cfg": {
            "context_length": row.context_length,
            "vocab_size": row.vocab_size,
            "width": row.text_width,
            "heads": row.text_heads,
            "layers": row.text_layers,
        },
    }
    if row.has_logit_bias:
        model["init_logit_bias"] = 0.0  # creates the parameter; its value comes from the weights
    preprocess = {"size": row.image_size_px, "mode": "RGB", "mean": list(MEAN), "std": list(STD)}
    return {"model_cfg": model, "preprocess_cfg": preprocess | _OPEN_CLIP_PREPROCESS}


def hugging_face_config(row: Architecture) -> dict[str, Any]:
    """config.json of a CLIPModel. For ViTs only: CLIPModel has no ResNets."""
    assert row.patch_size_px is not None
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": row.embed_dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": row.vision_width,
            "intermediate_size": 4 * row.vision_width,
            "num_hidden_layers": row.vision_layers,
            "num_attention_heads": row.vision_heads,
            "image_size": row.image_size_px,
            "patch_size": row.patch_size_px,
            "projection_dim": row.embed_dim,
            "hidden_act": row.activation,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": row.text_width,
            "intermediate_size": 4 * row.text_width,
            "num_hidden_layers": row.text_layers,
            "num_attention_heads": row.text_heads,
            "max_position_embeddings": row.context_length,
            "vocab_size": row.vocab_size,
            "projection_dim": row.embed_dim,
            "hidden_act": row.activation,
            "bos_token_id": START_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
            "pad_token_id": END_OF_TEXT,
        },
    }


def preprocessor_config(row: Architecture) -> dict[str, Any]:
    """preprocessor_config.json of a CLIPImageProcessor that computes the same as `Preprocess`."""
    size = row.image_size_px
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "rescale_factor": 1 / 255,
        **_HUGGING_FACE_PREPROCESS,
    }


def tokenizer_config(row: Architecture) -> dict[str, Any]:
    """tokenizer_config.json of a CLIPTokenizer, beside vocab.json and merges.txt (model/vocabulary.py)."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "processor_class": "CLIPProcessor",
        "model_max_length": row.context_length,
        "bos_token": START_SYMBOL,
        "eos_token": END_SYMBOL,
        "unk_token": END_SYMBOL,
        "pad_token": END_SYMBOL,  # as published: tokens after the first end of text change nothing
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }


_OPEN_CLIP_PREPROCESS = {"interpolation": "bicubic", "resize_mode": "shortest"}
_HUGGING_FACE_PREPROCESS = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": BICUBIC,
}
_CLIPS_PROCESSORS = re.compile(r"CLIP(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
_FIRST_RELEASES_END_OF_TEXT = 2
"""End-of-text in the first published configurations. transformers then reads at the largest id, as we do."""
# Pairs of tables: defaults of these classes for values that a configuration omits; and values that must not differ, since
# any other would compute something other than the paper's CLIP.
_OPEN_CLIP_VISION: dict[str, Any] = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}
_OPEN_CLIP_VISION_FIXED = {
    "head_width": 64, "mlp_ratio": 4.0, "ls_init_value": None, "attentional_pool": False, "no_ln_pre": False,
    "pos_embed_type": "learnable", "final_ln_after_pool": False, "pool_type": "tok", "act_kwargs": None, "norm_kwargs": None,
    "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False, "timm_model_name": None,
}  # fmt: skip
_OPEN_CLIP_TEXT: dict[str, Any] = {"layers": 12, "width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408}
_OPEN_CLIP_TEXT_FIXED = {
    "mlp_ratio": 4.0, "ls_init_value": None, "embed_cls": False, "no_causal_mask": False, "final_ln_after_pool": False,
    "pool_type": "argmax", "proj_bias": False, "proj_type": "linear", "act_kwargs": None, "norm_kwargs": None,
    "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False, "hf_model_name": None, "hf_tokenizer_name": None, "tokenizer_mode": None, "tokenizer_kwargs": None,
}  # fmt: skip
# Keys of open_clip's that change nothing in the paper's CLIP, or only with a key above that is fixed.
_OPEN_CLIP_MODEL_FREE = (
    "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "cast_dtype", "output_dict", "init_logit_scale",
    "init_logit_bias", "nonscalar_logit_scale",
)  # fmt: skip
_OPEN_CLIP_VISION_FREE = (
    "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "block_type",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
)  # fmt: skip
_OPEN_CLIP_TEXT_FREE = (
    "pad_id", "eos_id", "output_tokens", "block_type", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
)  # fmt: skip
_HUGGING_FACE_VISION: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32, "intermediate_size": 3072,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224,
}  # fmt: skip
_HUGGING_FACE_TEXT: dict[str, Any] = {
    "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49408,
    "intermediate_size": 2048, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


def stated_by_open_clip(config: dict[str, Any]) -> Stated:
    """Reads the facts from an open_clip_config.json.

    Raises:
        ValueError: it is not one, or describes a model or preprocessing other than the paper's.
    """
    model = config["model_cfg"] if "model_cfg" in config else config
    if not all(key in model for key in ("embed_dim", "vision_cfg", "text_cfg")):
        raise ValueError("lacks embed_dim, vision_cfg or text_cfg; restore the file that was published with the weights")
    vision, text = _OPEN_CLIP_VISION | model["vision_cfg"], _OPEN_CLIP_TEXT | model["text_cfg"]
    _check_fixed("vision_cfg", vision, _OPEN_CLIP_VISION_FIXED)
    _check_fixed("text_cfg", text, _OPEN_CLIP_TEXT_FIXED)
    _check_known("model_cfg", model, _OPEN_CLIP_MODEL_FREE)
    _check_known("vision_cfg", vision, (*_OPEN_CLIP_VISION, *_OPEN_CLIP_VISION_FIXED, *_OPEN_CLIP_VISION_FREE))
    _check_known("text_cfg", text, (*_OPEN_CLIP_TEXT, *_OPEN_CLIP_TEXT_FIXED, *_OPEN_CLIP_TEXT_FREE))
    if "preprocess_cfg" in config:
        _check_fixed("preprocess_cfg", config["preprocess_cfg"], {"mean": MEAN, "std": STD, **_OPEN_CLIP_PREPROCESS})
    is_resnet = isinstance(vision["layers"], list)
    facts = {
        "embed_dim": model["embed_dim"],
        "vision_layers": tuple(vision["layers"]) if is_resnet else vision["layers"],
        "vision_width": vision["width"],
        "patch_size_px": None if is_resnet else vision["patch_size"],
        "text_layers": text["layers"],
        "text_width": text["width"],
        "text_heads": text["heads"],
        "context_length": text["context_length"],
        "vocab_size": text["vocab_size"],
    }
    return Stated(OPEN_CLIP_CONFIG, "quick_gelu" if model.get("quick_gelu") else "gelu", facts, vision["image_size"])


def stated_by_hugging_face(config: dict[str, Any], *preprocessors: dict[str, Any]) -> Stated:
    """Reads the facts from a CLIPModel's config.json, and checks the configurations of its image processor.

    Raises:
        ValueError: it is not a CLIPModel's, its activation is unknown, or it describes a model or preprocessing other than
            the paper's.
    """
    if "model_type" not in config or config["model_type"] != "clip":
        found = config["model_type"] if "model_type" in config else None
        raise ValueError(f"model_type={found!r}: is not clip; give the folder of a CLIPModel")
    vision = _HUGGING_FACE_VISION | _section(config, "vision_config")
    text = _HUGGING_FACE_TEXT | _section(config, "text_config")
    for name, section in (("vision_config", vision), ("text_config", text)):
        if section["hidden_act"] not in ("quick_gelu", "gelu"):
            raise ValueError(
                f"{name}.hidden_act={section['hidden_act']!r}: is neither quick_gelu nor gelu, the supported activations; "
                "use weights that were trained with one of the two"
            )
        width = section["hidden_size"]
        heads = {"num_attention_heads": width // 64} if name == "vision_config" else {}
        _check_fixed(name, section, {"intermediate_size": 4 * width, "layer_norm_eps": 1e-5} | heads)
    if text.get("eos_token_id") not in (_FIRST_RELEASES_END_OF_TEXT, text["vocab_size"] - 1):
        _check_fixed("text_config", text, {"eos_token_id": END_OF_TEXT})
    if vision["hidden_act"] != text["hidden_act"]:
        raise ValueError(
            f"hidden_act: the image encoder's is {vision['hidden_act']} and the text encoder's {text['hidden_act']}, but both "
            "must have the same; use weights that were trained with one activation"
        )
    for preprocessor in preprocessors:
        images = preprocessor["image_processor"] if "image_processor" in preprocessor else preprocessor
        for key in ("image_processor_type", "feature_extractor_type"):
            if key in images and not _CLIPS_PROCESSORS.fullmatch(str(images[key])):  # omitted values are those of its class
                _check_fixed("image_processor", images, {key: "CLIPImageProcessor"})
        _check_fixed(
            "image_processor",
            images,
            {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255, **_HUGGING_FACE_PREPROCESS},
        )
        _check_sizes(images, vision["image_size"])
    facts = {
        "embed_dim": config["projection_dim"] if "projection_dim" in config else 512,
        "vision_layers": vision["num_hidden_layers"],
        "vision_width": vision["hidden_size"],
        "patch_size_px": vision["patch_size"],
        "text_layers": text["num_hidden_layers"],
        "text_width": text["hidden_size"],
        "text_heads": text["num_attention_heads"],
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
    }
    return Stated(HUGGING_FACE_CONFIG, vision["hidden_act"], facts, vision["image_size"])


def check_vocabulary(source: str, content: dict[str, Any]) -> None:
    """Raises ValueError if a vocab.json or tokenizer.json gives tokens other ids than the paper's CLIP."""
    found = content["model"]["vocab"] if source == "tokenizer.json" else content
    ours = vocabulary()
    differing = next((symbol for symbol in found if symbol not in ours or found[symbol] != ours[symbol]), None)
    differing = next((symbol for symbol in ours if symbol not in found), None) if differing is None else differing
    if differing is not None:
        theirs, own = found.get(differing, "missing"), ours.get(differing, "missing")
        raise ValueError(
            f"{source}: the token {differing!r} is {theirs}, but {own} in the paper's CLIP, whose tokenizer is the only one "
            "here; use other weights, or, to train these weights nevertheless, give a copy of their file without its "
            "configuration, and their activation"
        )


def check_stated(row: Architecture, stated: Stated | None, weights: str) -> None:
    """Raises ValueError if the stated facts are another architecture's, and names the one that fits, if any."""
    if stated is None:
        return
    wrong = [
        f"{field}={value}, not {getattr(row, field)}" for field, value in stated.facts.items() if getattr(row, field) != value
    ]
    if wrong:
        fitting = [
            name
            for name, other in ARCHITECTURES.items()
            if all(getattr(other, key) == one for key, one in stated.facts.items())
        ]
        named = f"its model.name is {' or '.join(fitting)}" if fitting else "no row of model/config.py describes it"
        raise ValueError(f"weights={weights}: is not {row.name}: its {stated.source} says {'; '.join(wrong)}; {named}")


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """One encoder's section. Files of older versions have a second one, of which also the defaults take precedence."""
    sections = [config[key] for key in (f"{name}_dict", name) if config.get(key) is not None]
    return dict(sections[0]) if sections else {}


def _check_sizes(images: dict[str, Any], image_size: Any) -> None:
    """Raises ValueError unless an image's shorter side becomes the image size, to which it is then cropped."""
    allowed = {
        "size": (image_size, {"shortest_edge": image_size}),
        "crop_size": (image_size, {"height": image_size, "width": image_size}, [image_size, image_size]),
    }
    for key, values in allowed.items():
        if key in images and images[key] not in values:
            _check_fixed("image_processor", images, {key: values[1]})


def _check_fixed(section: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if key in given and not _equal(given[key], value):
            raise ValueError(
                f"{section}.{key}={given[key]!r}: differs from {value!r}, as in the paper's CLIP; use other weights, or, "
                "to train these weights nevertheless, give a copy of their file without its configuration, and their activation"
            )


def _check_known(section: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises ValueError for a feature that later versions may have added, unless it is switched off."""
    for key, value in given.items():
        if key not in known and value not in (None, False, {}, [], 0):
            raise ValueError(
                f"{section}.{key}={value!r}: is not known here and may change what the model computes; use other weights, or, "
                "to train these weights nevertheless, give a copy of their file without its configuration, and their activation"
            )


def _equal(given: Any, wanted: Any) -> bool:
    if wanted is None:
        return given is None or given == {}
    if isinstance(wanted, tuple):
        return isinstance(given, list) and len(given) == len(wanted) and all(map(_close, given, wanted))
    return _close(given, wanted) if isinstance(wanted, float) and isinstance(given, float) else bool(given == wanted)


def _close(given: float, wanted: float) -> bool:
    return abs(given - wanted) < 1e-6

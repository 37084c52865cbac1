"""The facts that open_clip's and Hugging Face's configurations state, and their defaults."""

import pytest

from model.weight_files import choose_files


def test_what_a_configuration_leaves_out_is_its_tools_default():
    names = {"open_clip_config.json", "open_clip_model.safetensors", "config.json", "model.safetensors", "pytorch_model.bin"}
    assert choose_files(names) == ("open_clip_model.safetensors", "open_clip_config.json")
    assert choose_files(names - {"open_clip_model.safetensors"}) == ("model.safetensors", "config.json")
    from model.config import get_architecture
    from model.foreign_config import stated_by_hugging_face, stated_by_open_clip

    assert stated_by_hugging_face({"model_type": "clip"}).activation == "quick_gelu"
    assert stated_by_hugging_face({"model_type": "clip"}).facts == stated(get_architecture("ViT-B/32"))
    bare = {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}
    assert stated_by_open_clip(bare).activation == "gelu"
    assert stated_by_open_clip(bare).facts == stated(get_architecture("ViT-B/16"))


def stated(row):
    return {
        "embed_dim": row.embed_dim,
        "vision_layers": row.vision_layers,
        "vision_width": row.vision_width,
        "patch_size_px": row.patch_size_px,
        "text_layers": row.text_layers,
        "text_width": row.text_width,
        "text_heads": row.text_heads,
        "context_length": row.context_length,
        "vocab_size": row.vocab_size,
    }


def test_the_defaults_are_those_of_the_installed_tools():
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    from model import foreign_config

    for ours, theirs in (
        (foreign_config._OPEN_CLIP_VISION | foreign_config._OPEN_CLIP_VISION_FIXED, CLIPVisionCfg()),
        (foreign_config._OPEN_CLIP_TEXT | foreign_config._OPEN_CLIP_TEXT_FIXED, CLIPTextCfg()),
        (foreign_config._HUGGING_FACE_VISION, CLIPVisionConfig()),
        (foreign_config._HUGGING_FACE_TEXT, CLIPTextConfig()),
        ({"projection_dim": 512}, CLIPConfig()),
    ):
        assert ours == {key: getattr(theirs, key) for key in ours}


def test_every_key_of_the_installed_open_clip_is_known():
    from dataclasses import fields
    from inspect import signature

    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    from model import foreign_config

    for cfg, ours in (
        (CLIPVisionCfg, ("VISION", "VISION_FIXED", "VISION_FREE")),
        (CLIPTextCfg, ("TEXT", "TEXT_FIXED", "TEXT_FREE")),
    ):
        known = {key for name in ours for key in getattr(foreign_config, f"_OPEN_CLIP_{name}")}
        assert {field.name for field in fields(cfg)} == known
    assert set(signature(CLIP.__init__).parameters) - {"self"} <= {*foreign_config._OPEN_CLIP_MODEL_FREE}


def test_a_feature_that_is_not_known_is_refused_unless_it_is_off():
    from model.foreign_config import stated_by_open_clip

    config = {"embed_dim": 512, "vision_cfg": {"rotary": False}, "text_cfg": {"new": None}}
    assert stated_by_open_clip(config).activation == "gelu"
    for changed in ({"vision_cfg": {"rotary": True}}, {"text_cfg": {"window": 3}}, {"multimodal_cfg": {"layers": 12}}):
        with pytest.raises(ValueError, match="is not known here and may change what the model computes"):
            stated_by_open_clip(config | changed)

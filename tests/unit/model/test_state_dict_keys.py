"""State dicts go over to Hugging Face's keys and come back bit-equal."""

import pytest
import torch

from model.state_dict_keys import from_hugging_face, is_hugging_face, to_hugging_face
from tests.support.models import random_clip


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_state_dict_goes_there_and_comes_back_bit_equal():
    state = random_clip("debug-vit").state_dict()
    theirs = to_hugging_face(state)
    assert is_hugging_face(theirs)
    assert not is_hugging_face(state)
    assert not set(theirs) & (set(state) - {"logit_scale"})
    assert equal(from_hugging_face(theirs), state)


def test_the_names_and_shapes_are_those_of_a_clip_model():
    from transformers import CLIPConfig, CLIPModel

    from model.foreign_config import hugging_face_config

    clip = random_clip("debug-vit", context_length=24, image_size_px=48)
    model = CLIPModel(CLIPConfig(**hugging_face_config(clip.architecture)))
    theirs = to_hugging_face(clip.state_dict())
    assert {key: value.shape for key, value in theirs.items()} == {key: one.shape for key, one in model.state_dict().items()}


def test_siglips_bias_is_all_that_is_left_behind():
    state = random_clip("debug-vit", has_logit_bias=True).state_dict()
    back = from_hugging_face(to_hugging_face(state))
    assert equal(back, {key: value for key, value in state.items() if key != "logit_bias"})


def test_position_ids_of_older_versions_are_dropped():
    theirs = to_hugging_face(random_clip("debug-vit").state_dict())
    old = theirs | {f"{tower}.embeddings.position_ids": torch.arange(17)[None] for tower in ("text_model", "vision_model")}
    assert equal(from_hugging_face(old), from_hugging_face(theirs))


@pytest.mark.parametrize("lost", ["q_proj", "v_proj"])
def test_an_attention_without_its_three_matrices_stays_under_names_that_are_refused(lost):
    theirs = to_hugging_face(random_clip("debug-vit").state_dict())
    lost_key = f"text_model.encoder.layers.1.self_attn.{lost}.weight"
    ours = from_hugging_face({key: value for key, value in theirs.items() if key != lost_key})
    assert "transformer.resblocks.1.attn.in_proj_weight" not in ours
    assert any(".self_attn." in key and "resblocks.1" in key for key in ours)

"""A CLIP is found by the names of both encoders, under any prefix; tests/world/test_weights.py has what people wrap it in."""

import pytest
import torch

from model.clip_search import find_clip

CLIP = {"visual.proj": torch.ones(2), "text_projection": torch.ones(3), "logit_scale": torch.ones(())}
AVERAGE = {key: value / 2 for key, value in CLIP.items()}


def test_the_names_of_the_clip_are_those_without_what_wraps_it():
    found = find_clip({"state_dict": {f"module.model.{key}": value for key, value in CLIP.items()}})
    assert found.state.keys() == CLIP.keys()
    assert found.notices == ()


def test_tensors_without_a_clip_are_returned_whole():
    assert find_clip({"weight": torch.ones(2), "module.bias": torch.ones(2)}).state.keys() == {"weight", "bias"}


def test_what_is_ignored_is_listed_to_the_sixth():
    (notice,) = find_clip({"model": CLIP, **{f"extra_{index}": index for index in range(8)}}).notices
    assert notice == "ignores what it holds beside the weights: " + ", ".join(f"extra_{n}" for n in range(6)) + " and 2 more"


def test_an_own_name_that_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight is a float, not a tensor"):
        find_clip(CLIP | {"visual.conv1.weight": 0.5})


@pytest.mark.parametrize("name", ["loss.t", "criterion.scale", "val_loss", "epoch", "n_averaged", "optimizer.exp_avg"])
def test_known_tensors_beside_the_clip_are_ignored(name):
    assert find_clip(CLIP | {name: torch.ones(1)}).notices == (f"ignores what it holds beside the weights: {name}",)


@pytest.mark.parametrize("name", ["queue", "head.bias", "lossy.weight"])
def test_unknown_tensors_beside_the_clip_are_refused(name):
    with pytest.raises(ValueError, match=f"holds {name} beside the CLIP at its top"):
        find_clip(CLIP | {name: torch.ones(1)})


def test_one_clip_under_two_names_is_loaded_and_another_one_is_not():
    """As a Lightning module saves a model that two of its attributes hold."""
    twice = {f"{prefix}.{key}": value.clone() for prefix in ("model", "clip_model") for key, value in CLIP.items()}
    found = find_clip({"state_dict": twice, "epoch": 3})
    assert found.state.keys() == CLIP.keys()
    assert found.notices[0] == (
        "holds one CLIP under 2 names, `state_dict.clip_model` and `state_dict.model`, with the same weights"
    )
    for changed in ({"model.visual.proj": torch.zeros(2)}, {"model.visual.ln_post.weight": torch.ones(2)}):
        with pytest.raises(ValueError, match="holds 2 CLIPs"):
            find_clip({"state_dict": twice | changed})


NO_AVERAGES = [
    *("best_avg_recall_state_dict", "schema", "swapped", "email_clip", "model_without_ema", "non_ema", "no_ema", "noema"),
    *("model_before_ema", "pre_ema_state_dict", "not-averaged", "ema_off"),
    *("shadow_model", "shadow_net_1", "shadow_clip", "shadow_teacher"),  # those of membership inference
]
AVERAGES = [
    *("state_dict_ema", "ema_model", "model_ema", "emamodel", "avg_model", "swa_state", "averaged", "EMA", "modelEMA"),
    *("teacher_ema", "ema_0", "exponential_moving_average", "shadow_params", "ema-weights"),
    *("shadow", "shadow_weights", "shadow_state_dict", "ema_shadow_model"),
]


@pytest.mark.parametrize("name", NO_AVERAGES)
def test_a_name_with_a_word_that_no_average_has_is_none(name):
    with pytest.raises(ValueError, match="holds 2 CLIPs"):
        find_clip({"state_dict": CLIP, name: AVERAGE})


@pytest.mark.parametrize("name", AVERAGES)
def test_a_moving_average_is_known_by_its_name(name):
    found = find_clip({"state_dict": CLIP, name: AVERAGE})
    assert found.state["logit_scale"] is AVERAGE["logit_scale"]

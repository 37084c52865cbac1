"""Values are checked before a model converts them in silence; tests/world/test_weights_mistaken.py has more of them."""

import pytest
import torch

from model.weight_values import checked_values, doubts


def test_values_come_back_without_gradients_and_as_scalars():
    state = {"a": torch.nn.Parameter(torch.ones(2)), "logit_scale": torch.tensor([2.0]), "logit_bias": torch.tensor([-10.0])}
    checked = checked_values(state)
    assert not checked["a"].requires_grad
    assert checked["logit_scale"].shape == checked["logit_bias"].shape == ()


def test_a_sum_that_overflows_is_no_infinite_value():
    for dtype in (torch.float16, torch.float32):
        large = torch.full((4,), torch.finfo(dtype).max, dtype=dtype)
        assert torch.equal(checked_values({"a": large})["a"], large)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16])
def test_the_counters_of_batch_norm_may_have_any_real_type(dtype):
    assert checked_values({"bn.num_batches_tracked": torch.tensor(3).to(dtype)})


def test_every_damaged_tensor_is_counted_and_three_are_named():
    state = {name: torch.tensor([1.0, float("nan"), float("inf")]) for name in "abcd"}
    with pytest.raises(ValueError, match=r"in a \(2\), b \(2\), c \(2\) and 1 more tensors; the run diverged"):
        checked_values(state)


@pytest.mark.parametrize("name", ["visual.proj", "transformer.resblocks.0.ln_1.weight", "visual.class_embedding"])
def test_weights_that_no_training_makes_zero_are_refused(name):
    shape = (2, 2) if name == "visual.proj" else (4,)
    with pytest.raises(ValueError, match=rf"holds nothing but zeros in {name}, as if a download had stopped"):
        checked_values({name: torch.zeros(shape), "other": torch.ones(2)})
    assert checked_values({name: torch.eye(4)[0] if len(shape) == 1 else torch.eye(2)})


@pytest.mark.parametrize("name", ["ln_final.bias", "transformer.resblocks.0.attn.in_proj_bias", "visual.layer1.0.bn3.weight"])
def test_weights_that_begin_as_zeros_may_be_zero(name):
    assert checked_values({name: torch.zeros(4)})


@pytest.mark.parametrize("mask", [torch.full((4, 4), float("-inf")).triu(1), torch.ones(4, 4, dtype=torch.bool).triu(1)])
def test_a_causal_mask_is_dropped(mask):
    assert checked_values({"attn_mask": mask}) == {}
    with pytest.raises(ValueError, match="is not the causal mask"):
        checked_values({"attn_mask": mask.T})


def test_a_mask_that_does_not_block_is_no_causal_mask():
    for mask in (torch.full((4, 4), -0.1).triu(1), torch.full((4, 4), -torch.inf).triu(1) + torch.eye(4)):
        with pytest.raises(ValueError, match="is not the causal mask"):
            checked_values({"attn_mask": mask})


@pytest.mark.parametrize("scale", [-4.6, -2.659, -1e-3, 0.0, 0.07])
def test_a_temperature_in_place_of_the_logit_scale_is_said(scale):
    (notice,) = doubts(checked_values({"logit_scale": torch.tensor(scale)}))
    assert f"has a logit_scale of {scale:.4g}, a factor of " in notice
    assert "if this is the temperature, or its logarithm, store the negative of the logarithm" in notice


def test_a_usual_logit_scale_or_none_is_not_mentioned():
    for state in ({"logit_scale": torch.tensor(2.659)}, {"logit_scale": torch.tensor([4.6052])}, {"a": torch.ones(2)}):
        assert doubts(checked_values(state)) == ()

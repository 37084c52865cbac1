"""The loss of one of several ranks: both sides measure the same value."""

import pytest
import torch

from jobs.benchmarks.loss_cost import RankFeatures, measure_loss


@pytest.mark.parametrize("side", ["ours", "local"])
def test_the_loss_is_measured_forward_and_backward(side):
    _, seconds = measure_loss(side, size=64, repeats=1)
    assert seconds > 0


def test_both_sides_have_the_same_value_and_gradients():
    torch.manual_seed(0)
    features = RankFeatures.random(4, 32, torch.device("cpu"), width=16)
    found = []
    for loss in (features.tiled_loss(8), features.local_loss(8)):
        features.forget_gradients()
        loss.backward()
        found.append((loss.detach(), [leaf.grad for leaf in features.leaves]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_copy_in_float64_has_the_same_values():
    features = RankFeatures.random(2, 8, torch.device("cpu"), width=4)
    for one, other in zip(features.leaves, features.double().leaves, strict=True):
        assert other.dtype == torch.float64
        assert torch.equal(one.double(), other)
        assert other.requires_grad

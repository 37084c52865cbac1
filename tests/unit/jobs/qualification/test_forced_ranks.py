"""One rank that is forced to communicate, over gloo, equals one that is alone; test_qualify.py runs the section."""

import contextlib
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from jobs.qualification import forced_ranks
from jobs.qualification.forced_ranks import forced_world, relative_difference
from jobs.qualification.scale import Scale
from training import distributed
from training.distributed import (
    World,
    all_ranks,
    exchange_and_sum,
    gather_features,
    gather_objects,
    gather_uneven,
    reduce_scatter,
    sum_over_ranks,
)


@pytest.fixture
def forced():
    """A rank that communicates."""
    with forced_world(Scale("cpu", tiny=True)) as world:
        yield world


@pytest.mark.parametrize("scatter", [reduce_scatter, exchange_and_sum])
def test_a_forced_world_of_one_makes_every_collective(forced, scatter):
    assert not forced.is_alone
    rows = torch.randn(5, 3, requires_grad=True)
    gathered = gather_features(rows, 5, forced)
    assert gathered is not rows
    assert torch.equal(gathered, rows)
    weights = torch.randn(5, 3)
    (gathered * weights).sum().backward()
    assert torch.equal(rows.grad, weights)
    assert torch.equal(scatter(weights, [(0, 5)], forced), weights)
    assert torch.equal(sum_over_ranks(weights, forced), weights)
    assert torch.equal(gather_uneven(weights, forced), weights)
    assert torch.equal(all_ranks(weights[0], forced), weights[:1])
    assert gather_objects("here", forced) == ["here"]
    assert forced.communication.take() > 0


@pytest.mark.parametrize("name", forced_ranks.CASES)
def test_a_forced_world_of_one_has_the_loss_and_the_gradients_of_one_that_is_alone(forced, name):
    """Through DDP, its communication hook, the gathers and the reduce-scatter."""
    case, alone = forced_ranks.CASES[name], World(0, 1, torch.device("cpu"))
    with collectives() as made:
        loss, gradients = forced_ranks.gradients_of(case, forced)
    assert {"all_gather_into_tensor", "all_to_all_single", "hook"} <= set(made)
    with collectives() as made:
        expected, expected_gradients = forced_ranks.gradients_of(case, alone)
    assert not made
    assert torch.equal(loss, expected)
    assert len(gradients) > 30
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@contextlib.contextmanager
def collectives():
    """Collects the names of the collectives that are made; `hook` is that of DDP."""
    made = []

    def noting(module, name, as_name):
        function = getattr(module, name)
        return mock.patch.object(module, name, lambda *args, **options: (made.append(as_name), function(*args, **options))[1])

    with contextlib.ExitStack() as stack:
        for name in ("all_gather_into_tensor", "all_to_all_single"):
            stack.enter_context(noting(torch.distributed, name, name))
        stack.enter_context(noting(distributed, "allreduce_hook", "hook"))
        yield made


def test_a_difference_is_relative_to_the_largest_value():
    one = torch.tensor([0.0, 4.0])
    assert relative_difference(one, one) == 0
    assert relative_difference(one, torch.tensor([1.0, 4.0])) == pytest.approx(0.25)
    assert relative_difference(torch.zeros(2), one) == 4


def test_the_process_group_ends_with_the_context_also_after_an_error():
    def fail():
        with forced_world(Scale("cpu", tiny=True)) as world:
            assert dist.is_initialized()
            assert world.forced
            raise ValueError("in the midst")

    with pytest.raises(ValueError, match="in the midst"):
        fail()
    assert not dist.is_initialized()

"""Slices and worlds; gathers across processes are tested with the loss."""

import contextlib
import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.qualification import forced_ranks
from jobs.qualification.scale import Scale
from tests.support.runs import run_script
from training import distributed
from training.distributed import (
    World,
    all_ranks,
    exchange_and_sum,
    gather_features,
    gather_objects,
    gather_rows,
    gather_uneven,
    pick_device,
    reduce_scatter,
    slice_bounds,
    sum_over_ranks,
)


@given(st.integers(1, 10_000), st.integers(1, 300))
def test_slices_cover_everything_and_differ_by_at_most_one(size, world_size):
    bounds = [slice_bounds(size, rank, world_size) for rank in range(world_size)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
    sizes = {stop - first for first, stop in bounds}
    assert max(sizes) - min(sizes) <= 1


def test_a_world_of_one_needs_no_process_group():
    world = World.from_process_group(torch.device("cpu"))
    rows = torch.randn(3, 2)
    assert world.is_main
    assert gather_features(rows, 3, world) is rows
    assert torch.equal(gather_rows(rows, 3, world), rows)
    assert torch.equal(all_ranks(rows[0], world), rows[:1])


@pytest.fixture(scope="module")
def forced():
    """A rank that communicates, over gloo."""
    with forced_ranks.forced_world(Scale("cpu", tiny=True)) as world:
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is CUDA on a machine that has it")
def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert pick_device("auto").type == "cpu"


def test_an_error_of_one_rank_is_raised_on_all_and_they_continue_together(tmp_path):
    code = "import runpy; runpy.run_module('tests.support.failing_worker', None, '__main__', alter_sys=True)"
    assert run_script(code, str(tmp_path)) == (0, "")

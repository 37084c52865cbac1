"""Slices and worlds; gathers across processes are tested with the loss."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runs import run_script
from training.distributed import World, all_ranks, gather_features, gather_rows, pick_device, slice_bounds


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is CUDA on a machine that has it")
def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert pick_device("auto").type == "cpu"


def test_an_error_of_one_rank_is_raised_on_all_and_they_continue_together(tmp_path):
    code = "import runpy; runpy.run_module('tests.support.failing_worker', None, '__main__', alter_sys=True)"
    assert run_script(code, str(tmp_path)) == (0, "")

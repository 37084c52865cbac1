"""Comparison of two worlds; tests/unit/training/test_distributed.py compares them, test_qualify.py runs the section."""

import pytest
import torch
import torch.distributed as dist

from jobs.qualification.forced_ranks import forced_world, relative_difference
from jobs.qualification.scale import Scale


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

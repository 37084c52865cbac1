"""A snapshot holds the state of its step, in memory that the next one reuses."""

import pytest
import torch

from model.clip import build_clip
from training.checkpoint.snapshot import AVERAGE, MODEL, STATE, Position, Stager, named_parameters
from training.config import OptimizerConfig
from training.optimizer import WeightAverage, build_optimizer


@pytest.fixture
def trained():
    """A model after one step, and its optimizer."""
    torch.manual_seed(1)
    clip = build_clip("debug-vit")
    optimizer = build_optimizer(clip, OptimizerConfig())
    for parameter in clip.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return clip, optimizer


def test_a_snapshot_is_of_its_step_though_training_continues(trained):
    clip, optimizer = trained
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    snapshot = Stager().stage(clip, optimizer, Position(1, 32))
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.fill_(7)
    assert snapshot.position == Position(1, 32)
    assert all(torch.equal(value, snapshot.tensors[MODEL][key]) for key, value in before.items())


def test_the_next_snapshot_takes_the_memory_of_the_last(trained):
    clip, optimizer = trained
    stager = Stager()
    first = stager.stage(clip, optimizer, Position(1, 32))
    second = stager.stage(clip, optimizer, Position(2, 64))
    assert all(value.data_ptr() == second.tensors[MODEL][key].data_ptr() for key, value in first.tensors[MODEL].items())


def test_moments_have_the_names_of_their_parameters_and_the_average_a_file_of_its_own(trained):
    clip, optimizer = trained
    without = Stager().stage(clip, optimizer, Position(1, 32))
    assert set(without.tensors) == {MODEL, STATE}
    names = {name for name, _ in named_parameters(clip, optimizer)}
    assert names == {name for name, _ in clip.named_parameters()}
    expected = {f"optimizer/{name}/{moment}" for name in names for moment in ("exp_avg", "exp_avg_sq", "step")}
    assert set(without.tensors[STATE]) == {*expected, "random/torch"}
    average = WeightAverage(clip, 0.5).clip
    snapshot = Stager().stage(clip, optimizer, Position(1, 32), average)
    assert set(snapshot.tensors[AVERAGE]) == set(average.state_dict())
    assert snapshot.metadata[AVERAGE] == snapshot.metadata[MODEL]

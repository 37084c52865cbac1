"""A float16 run trains as a float32 one does, skips steps that overflow, and resumes with its scale."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import ALONE, config_of, exact_rows
from training.record.tracking import read_metrics
from training.step import loss_scale
from training.step.loss_scale import LossScale
from training.step.non_finite import DivergedError
from training.trainer import Trainer, train

HALF = "train.precision=float16"
INITIAL = 256.0


@pytest.fixture(autouse=True)
def _a_scale_that_fits_from_the_first_step(monkeypatch):
    monkeypatch.setattr(loss_scale, "INITIAL", INITIAL)


def test_the_scale_is_halved_by_an_overflow_and_doubled_after_many_good_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROWTH", 3)
    scale, yes = LossScale(ALONE.device, enabled=True), torch.tensor(True)
    assert not scale.settle(~yes), "an overflow is no event"
    assert scale.figures() == {"loss_scale": INITIAL / 2, "overflowed_steps": 1}
    for _ in range(2):
        scale.settle(yes)
    scale.settle(~yes)
    for _ in range(3):
        scale.settle(yes)
    assert scale.figures() == {"loss_scale": INITIAL / 2, "overflowed_steps": 2}, "halved, and doubled after three in a row"
    for _ in range(7):
        assert not scale.settle(~yes)
    assert scale.figures()["loss_scale"] == 1
    assert scale.settle(~yes), "a gradient that is non-finite without a scale is not finite"
    none = LossScale(ALONE.device, enabled=False)
    assert (bool(none.settle(~yes)), none.figures()["loss_scale"], none.state) == (True, 1.0, {})


def test_gradients_are_those_of_the_loss():
    scale, layer = LossScale(ALONE.device, enabled=True), torch.nn.Linear(2, 1)
    loss = layer(torch.ones(1, 2)).sum()
    scale.scaled(loss).backward()
    assert layer.weight.grad.tolist() == [[INITIAL, INITIAL]]
    scale.unscale_(layer)
    assert layer.weight.grad.tolist() == [[1, 1]]


@pytest.mark.parametrize("micro", ["null", "12"])
def test_a_run_in_float16_has_the_losses_of_one_in_float32_as_far_as_half_precision_goes(data_set, tmp_path, micro):
    losses = []
    for precision in ("float32", "float16"):
        settings = (f"train.precision={precision}", f"train.micro_batch_size={micro}")
        train(config_of(data_set, tmp_path / precision, *settings), ALONE)
        losses.append([row["loss"] for row in read_metrics(tmp_path / precision / "debug_cpu" / "metrics.jsonl")])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_steps_that_overflow_are_counted_and_the_run_goes_on(data_set, tmp_path, monkeypatch):
    inputs = Trainer._inputs

    def spoilt(self, batch):
        images, *rest = inputs(self, batch)
        if self.position.step + 1 == 4:
            images = images.float().fill_(torch.inf)
        return images, *rest

    monkeypatch.setattr(Trainer, "_inputs", spoilt)
    train(config_of(data_set, tmp_path, HALF), ALONE)
    rows = read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")
    assert [row["overflowed_steps"] for row in rows] == [0] * 3 + [1] * 9
    assert [row["skipped_steps"] for row in rows] == [0] * 12, "the guard has nothing to report"
    assert rows[-1]["loss_scale"] == INITIAL / 2
    state = load_file(tmp_path / "debug_cpu/checkpoints/step_00000012/state.safetensors")
    assert {int(value) for name, value in state.items() if name.endswith("/step")} == {11}


def test_a_run_that_is_non_finite_at_any_scale_ends(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "INITIAL", 4.0)
    inputs = Trainer._inputs
    monkeypatch.setattr(Trainer, "_inputs", lambda self, batch: (inputs(self, batch)[0].float() * torch.nan, batch.texts))
    with pytest.raises(DivergedError, match=r"step 3: loss or gradient is non-finite \(non-finite features, rank 0: 32 of 32"):
        train(config_of(data_set, tmp_path, HALF), ALONE)


def test_a_resumed_run_has_its_scale_and_its_losses_bit_for_bit(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROWTH", 4)
    whole = config_of(data_set, tmp_path / "whole", HALF)
    train(whole, ALONE)
    part = (HALF, "checkpoint.every_steps=7")
    after_step = Trainer._after_step
    monkeypatch.setattr(Trainer, "_after_step", stop_after(7, after_step))
    train(config_of(data_set, tmp_path / "part", *part), ALONE)
    monkeypatch.setattr(Trainer, "_after_step", after_step)
    train(config_of(data_set, tmp_path / "part", *part), ALONE)
    rows = [exact_rows(tmp_path / name) for name in ("whole", "part")]
    assert json.dumps(rows[0]) == json.dumps(rows[1])
    assert [row["loss_scale"] / INITIAL for row in read_metrics(tmp_path / "part" / "debug_cpu" / "metrics.jsonl")] == [
        *[1.0] * 3,
        *[2.0] * 4,
        *[4.0] * 4,
        8.0,
    ]


def stop_after(step, after_step):
    def after(self):
        after_step(self)
        self._stops = self.position.step == step

    return after

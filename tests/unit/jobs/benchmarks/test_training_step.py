"""The benchmark of a step: rounds in turn, with new captions in each step, and figures of each side."""

import sys

import pytest
import torch

from jobs.benchmarks import training_step
from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import Setting, Side
from jobs.benchmarks.training_step import Measured, measure, run, timed

TINY = Setting("debug-vit", batch_size=4)


class Noting(Side):
    """A side that notes its batches."""

    name = "noting"

    def __init__(self, setting=None, clip=None):
        self.taken = []

    def step(self, images, texts):
        self.taken.append(texts)
        return torch.tensor(1.0)


def test_each_step_of_a_round_has_new_captions(monkeypatch):
    built = []
    monkeypatch.setitem(training_step.SIDES, "noting", lambda *_: built.append(Noting()) or built[-1])
    measure(TINY, ReadyBatches(TINY, different=5), rounds=2, steps=3, sides=("noting",))
    (side,) = built
    assert len(side.taken) == 2 + 2 * 3
    for first in (2, 5):
        one, two, three = side.taken[first : first + 3]
        assert not torch.equal(one, two)
        assert not torch.equal(two, three)


def test_the_time_is_that_of_all_steps_over_their_number():
    side = Noting()
    assert timed(side, iter([(None, None)] * 9), steps=4, device="cpu") > 0
    assert len(side.taken) == 4


def test_both_sides_start_with_the_same_loss_and_have_figures_of_their_own():
    found = measure(TINY, ReadyBatches(TINY, different=3), rounds=2, steps=1)
    ours, theirs = found["ours"], found["open_clip"]
    assert ours.first_loss == pytest.approx(theirs.first_loss, rel=1e-4)
    assert len(ours.step_s) == len(theirs.step_s) == 2
    assert ours.peak_bytes > 0


def test_the_text_compares_rates_of_the_same_work(monkeypatch):
    found = {"ours": Measured(2.0, (0.5, 0.25), 1 << 30), "open_clip": Measured(2.0, (1.0, 1.0), 2 << 30)}
    monkeypatch.setattr(training_step, "measure", lambda *_: found)
    monkeypatch.setattr(training_step, "batch_flops", lambda *_: 6e12)
    text = run(TINY, rounds=2, steps=1)
    assert "ours         0.3750 s a step      10.67 pairs/s    4.000 TFLOP/s     1.00 GiB" in text
    assert "open_clip    1.0000 s a step       4.00 pairs/s    1.500 TFLOP/s     2.00 GiB" in text
    assert "ours over open_clip's: 3.00x (2.00, 4.00)" in text
    assert "relative difference 0.0e+00" in text


def test_our_side_alone_needs_no_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    text = run(TINY, rounds=1, steps=1, sides=("ours",))
    assert "open_clip" not in text
    assert "pairs/s" in text


def test_ddp_and_micro_batches_are_in_the_headline_and_change_no_loss():
    setting = Setting("debug-vit", batch_size=4, micro_batch_size=3, ddp=True)
    text = run(setting, rounds=1, steps=1)
    assert "float32, 3 at a time, DDP" in text
    split = measure(setting, ReadyBatches(setting, different=3), rounds=1, steps=1)
    whole = measure(TINY, ReadyBatches(TINY, different=3), rounds=1, steps=1)
    for side in whole:
        assert split[side].first_loss == pytest.approx(whole[side].first_loss, rel=1e-5)

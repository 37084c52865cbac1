"""The benchmark of a step: both sides compute the same loss."""

from statistics import median

import pytest
import torch

from jobs.benchmarks.training_step import Setting, _rate, _sides, captions, measure_loss
from model.tokenizer import tokenize


def test_captions_are_as_long_as_those_of_the_web_and_the_same_for_a_seed():
    texts = captions(500)
    assert texts == captions(500)
    assert texts != captions(500, seed=1)
    lengths = [int((ids != 0).sum()) for ids in tokenize(texts)]
    assert 9 <= median(lengths) <= 15


def test_both_sides_start_with_the_same_loss_on_the_same_batch():
    torch.manual_seed(0)
    ours, theirs, texts = _sides(Setting("debug-vit", batch_size=8))
    assert len(texts) == 8
    assert ours() == pytest.approx(theirs(), rel=1e-4)


def test_utilisation_is_stated_only_for_a_known_device():
    assert "%" not in _rate(1e12, Setting("debug-vit", 8))
    assert "1.000 TFLOP/s" in _rate(1e12, Setting("debug-vit", 8))


@pytest.mark.parametrize("side", ["ours", "local"])
def test_the_loss_is_measured_forward_and_backward(side):
    _, seconds = measure_loss(side, size=64, repeats=1)
    assert seconds > 0

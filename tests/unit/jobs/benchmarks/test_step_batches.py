"""Batches of both sides: the same pairs where they lie ready, a loader of each side else."""

import itertools

import pytest
import torch

from jobs.benchmarks.step_batches import LoadedBatches, ReadyBatches
from jobs.benchmarks.step_sides import OurSide, Setting, TheirSide
from model.clip import build_clip

SETTING = Setting("debug-vit", batch_size=4)


@pytest.fixture(scope="module")
def sides():
    return OurSide(SETTING, build_clip("debug-vit")), TheirSide(SETTING, build_clip("debug-vit"))


def test_ready_batches_are_the_same_pairs_padded_as_each_side_has_them(sides):
    source = ReadyBatches(SETTING, different=2)
    with source(sides[0]) as ours, source(sides[1]) as theirs:
        for (image, text), (their_image, their_text) in itertools.islice(zip(ours, theirs, strict=True), 3):
            assert torch.equal(image, their_image)
            assert their_text.shape == (4, 77)
            assert torch.equal(their_text[:, : text.shape[1]], text)
            assert text.shape[1] == max(int((row != 0).sum()) for row in their_text)
    assert len(source.lengths) == 8
    assert source.lengths[0] == int((source.texts[0][0] != 0).sum())


def test_captions_repeat_only_after_all_that_differ():
    source = ReadyBatches(SETTING, different=3, raw=True)
    assert source.images.dtype == torch.uint8
    assert len({tuple(one.flatten().tolist()) for one in source.texts}) == 3


def test_each_side_loads_the_same_tars(sides, tmp_path):
    source = LoadedBatches(SETTING, tmp_path / "data", samples=16, workers=0)
    for side in sides:
        with source(side) as batches:
            images, texts = next(batches)
        assert images.shape == (4, 3, 32, 32)
        assert len(texts) == 4
        assert torch.isfinite(side.step(images, texts))

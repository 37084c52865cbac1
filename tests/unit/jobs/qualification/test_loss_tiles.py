"""The loss by tile: a wrong value would show as an error."""

import torch

from jobs.benchmarks.loss_cost import RankFeatures
from jobs.qualification import loss_tiles
from jobs.qualification.scale import Scale

TINY = Scale("cpu", tiny=True)


def test_tiles_of_every_size_have_the_value_of_the_whole_matrix():
    torch.manual_seed(0)
    features = RankFeatures.random(4, 32, torch.device("cpu"), loss_tiles.LARGEST_SCALE, width=8)
    whole = features.local_loss(0).detach()
    for tile in (1, 5, 32):
        torch.testing.assert_close(loss_tiles._both_ways(features, tile), whole, rtol=1e-5, atol=1e-6)


def test_a_wrong_value_misses_its_aim(monkeypatch):
    monkeypatch.setattr(loss_tiles, "_step_s", lambda *_: 1.0)
    tiled = RankFeatures.tiled_loss
    monkeypatch.setattr(
        RankFeatures, "tiled_loss", lambda self, tile: tiled(self, tile) * (1.001 if self.scale.dtype == torch.float32 else 1)
    )
    missed = [figure.name for figure in loss_tiles.loss(TINY) if figure.verdict("cpu") == "missed"]
    assert missed == ["float32: error of the loss against float64", "float32: largest error of a gradient against float64"]

"""The loss of one of 8 ranks at a global batch of 32,768: time by tile, with and without TF32, and its error.

The error is that of value and gradients against float64, at the largest scale that training allows (100), where rounding of the
similarities weighs most.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.benchmarks.loss_cost import RANKS, RankFeatures
from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import Setting
from jobs.benchmarks.training_step import measure
from jobs.qualification.forced_ranks import relative_difference
from jobs.qualification.judgement import ON_CUDA, Aim, Figure
from jobs.qualification.memory_fit import fitting_micro_batch
from jobs.qualification.scale import Scale
from jobs.qualification.stopwatch import seconds_of

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_SCALE = 100.0


def loss(scale: Scale) -> Iterator[Figure]:
    """Time of forward and backward, error, and the share of a step of the default tile."""
    from training.config import TrainConfig

    rows = scale.size(4096, 8)
    tile = min(TrainConfig().loss_tile_size or scale.size(4096, 64), rows * RANKS)
    loss_s = yield from _tiles(scale, rows, tile)
    step_s = _step_s(scale, rows)
    yield Figure(f"a step of {rows:,} pairs without it", step_s * 1e3, "ms")
    yield Figure(f"share of a step, float32, tile {tile:,}", loss_s / (step_s + loss_s), aim=Aim(most=0.05, on=ON_CUDA))


def _tiles(scale: Scale, rows: int, default: int) -> Generator[Figure, None, float]:
    """Time and error of each tile, in float32 and in TF32. Returns the seconds of the default tile in float32."""
    import torch

    torch.manual_seed(0)
    width = scale.size(512, 32)
    features = RankFeatures.random(rows, rows * RANKS, scale.torch_device, LARGEST_SCALE, width)
    exact = features.double()
    exact_loss = _both_ways(exact, scale.size(4096, 16))
    seconds = {}
    for allowed in (False, True) if scale.device == "cuda" else (False,):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        precision = "TF32" if allowed else "float32"
        for tile in dict.fromkeys((default, *scale.size((1024, 2048, 4096, 8192), (16, 32)))):
            both_ways = functools.partial(_both_ways, features, tile)
            seconds[precision, tile] = seconds_of(both_ways, scale.device, scale.size(5, 1))
            yield Figure(f"{precision}, tile {tile:,}", seconds[precision, tile] * 1e3, "ms")
        error = abs(float(_both_ways(features, default)) / float(exact_loss) - 1)
        yield Figure(f"{precision}: error of the loss against float64", error, aim=None if allowed else Aim(most=1e-5))
        errors = [
            relative_difference(right.grad, one.grad.double())
            for one, right in zip(features.leaves, exact.leaves, strict=True)
            if one.grad is not None and right.grad is not None
        ]
        name = f"{precision}: largest error of a gradient against float64"
        yield Figure(name, max(errors), aim=None if allowed else Aim(most=1e-3))
    torch.backends.cuda.matmul.allow_tf32 = False
    return seconds["float32", default]


def _both_ways(features: RankFeatures, tile: int) -> Tensor:
    """Forward and backward. Returns the loss."""
    features.forget_gradients()
    found = features.tiled_loss(tile)
    found.backward()
    return found.detach()


def _step_s(scale: Scale, rows: int) -> float:
    """Seconds of our step of one rank's pairs, without its own loss, which is a small part of it."""
    setting = Setting(scale.model, rows, scale.device, scale.precision)
    setting = replace(setting, micro_batch_size=fitting_micro_batch(setting))
    return measure(setting, ReadyBatches(setting, scale.size(7, 3), raw=True), 1, scale.size(5, 1), ("ours",))["ours"].median_s

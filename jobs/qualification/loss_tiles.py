"""The loss of one of 8 ranks at a global batch of 32,768: time by tile, with and without TF32, and its error.

The error is that of value and gradients against float64, at the largest scale that training allows (100), where rounding of the
similarities weighs most.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.benchmarks.loss_cost import RANKS, RankFeatures
from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import Setting
from jobs.benchmarks.training_step import measure
from jobs.qualification.forced_ranks import relative_difference
from jobs.qualification.judgement import ON_CUDA, Aim, Figure
from jobs.qualification.memory_fit import fitting_micro_batch
from jobs.qualification.scale import Scale
from jobs.qualification.stopwatch import seconds_of

LARGEST_SCALE = 100.0


def loss(scale: Scale) -> Iterator[Figure]:
    """Time of forward and backward, error, and the share of a step of the default tile."""
    import torch

    from training.config import TrainConfig

    rows = scale.size(4096, 8)
    torch.manual_seed(0)
    features = RankFeatures(rows, rows * RANKS, scale.torch_device, LARGEST_SCALE, width=scale.size(512, 32))
    exact = features.double()
    exact_loss = exact.tiled_loss(scale.size(4096, 16))
    exact_loss.backward()
    default = min(TrainConfig().loss_tile_size, rows * RANKS)
    seconds = {}
    for allowed in (False, True) if scale.device == "cuda" else (False,):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        precision = "TF32" if allowed else "float32"
        for tile in dict.fromkeys((default, *scale.size((1024, 2048, 4096, 8192), (16, 32)))):
            seconds[precision, tile] = seconds_of(lambda tile=tile: _both_ways(features, tile), scale.device, scale.size(5, 1))  # type: ignore[misc]
            yield Figure(f"{precision}, tile {tile:,}", seconds[precision, tile] * 1e3, "ms")
        error = abs(float(_both_ways(features, default)) / float(exact_loss) - 1)
        aim = None if allowed else Aim(most=1e-5)
        yield Figure(f"{precision}: error of the loss against float64", error, aim=aim)
        pairs = zip(features.leaves, exact.leaves, strict=True)
        gradients = [(one.grad.double(), other.grad) for one, other in pairs if one.grad is not None and other.grad is not None]
        largest = max(relative_difference(other, one) for one, other in gradients)
        yield Figure(f"{precision}: largest error of a gradient against float64", largest, aim=Aim(most=1e-3) if aim else None)
    torch.backends.cuda.matmul.allow_tf32 = False
    del features, exact, exact_loss
    step_s = _step_s(scale, rows)
    yield Figure(f"a step of {rows:,} pairs without it", step_s * 1e3, "ms")
    share = seconds["float32", default] / (step_s + seconds["float32", default])
    yield Figure("share of a step, float32, default tile", share, aim=Aim(most=0.05, on=ON_CUDA))


def _both_ways(features: RankFeatures, tile: int) -> object:
    """Forward and backward. Returns the loss."""
    features.forget_gradients()
    found = features.tiled_loss(tile)
    found.backward()
    return found.detach()


def _step_s(scale: Scale, rows: int) -> float:
    """Seconds of our step of one rank's pairs, without its own loss, which is a small part of it."""
    from dataclasses import replace

    setting = Setting(scale.model, rows, scale.device, scale.precision)
    setting = replace(setting, micro_batch_size=fitting_micro_batch(setting))
    return measure(setting, ReadyBatches(setting, scale.size(7, 3)), 1, scale.size(5, 1), ("ours",))["ours"].median_s

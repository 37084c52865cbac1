"""Pairs per second, utilisation and memory of a training step, ours and, where it is installed, open_clip's.

Both sides by jobs/benchmarks/training_step.py: the same weights and pairs, new captions in each step, no wait for the device in
the steps that are timed. Where an aim compares, each side counts with the faster of its runs, compiled or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from jobs.benchmarks.model_flops import batch_flops, utilisation
from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import Setting
from jobs.benchmarks.training_step import WARM_UP_STEPS, Measured, measure
from jobs.qualification.judgement import ON_CUDA, ON_HOPPER, Aim, Figure
from jobs.qualification.memory_fit import fitting_micro_batch, free_memory, whole_batch
from jobs.qualification.scale import Scale


def step(scale: Scale) -> Iterator[Figure]:
    """ViT-B/32 at 1,024 pairs, without compilation: both sides."""
    yield from _side_by_side(scale, whole_batch(scale, scale.model, scale.size(1024, 8)))


def full_batch(scale: Scale) -> Iterator[Figure]:
    """ViT-B/32 at 4,096 pairs, the batch of the aims, with micro-batches where it does not fit."""
    yield from _best(scale, scale.model, scale.size(4096, 8), least_ratio=1.5, least_rate=7_000)


def large_model(scale: Scale) -> Iterator[Figure]:
    """ViT-L/14 at 128 pairs."""
    yield from _best(scale, scale.size("ViT-L/14", "debug-vit"), scale.size(128, 4), least_ratio=1.2, least_rate=500)


def resnet(scale: Scale) -> Iterator[Figure]:
    """RN50 at 256 pairs: our side with cudnn.benchmark off and on, then both sides."""
    import torch

    setting = whole_batch(scale, scale.size("RN50", "debug-rn"), scale.size(256, 4))
    for is_on in (True, False):
        torch.backends.cudnn.benchmark = is_on
        found = measure(setting, ReadyBatches(setting, _different(scale)), *_rounds(scale), ("ours",))
        yield _rate(f"ours, cudnn.benchmark {'on' if is_on else 'off'}", setting, found["ours"])
    yield from _side_by_side(scale, setting, least_ratio=1.2)


def installed_sides() -> tuple[str, ...]:
    """Our side, and open_clip's where it is installed."""
    try:
        import open_clip  # noqa: F401
    except ImportError:
        return ("ours",)
    return ("ours", "open_clip")


def _side_by_side(scale: Scale, setting: Setting, least_ratio: float | None = None) -> Iterator[Figure]:
    """Both sides with one setting, in turns, and half the batch as long as one of them does not fit."""
    import torch

    sides = installed_sides()
    while True:
        batches = ReadyBatches(setting, _different(scale))
        with contextlib.suppress(torch.OutOfMemoryError):
            found = measure(setting, batches, *_rounds(scale), sides)
            break
        free_memory()
        setting = _halved(setting)
    yield Figure("pairs a step", setting.batch_size)
    for side, one in found.items():
        yield from _figures(side, setting, one, batches, scale)
    if "open_clip" not in found:
        yield Figure("open_clip", "not installed: no comparison")
        return
    aim = None if least_ratio is None else Aim(least=least_ratio, on=ON_CUDA)
    yield Figure("pairs/s over open_clip's", found["open_clip"].median_s / found["ours"].median_s, "x", aim)


def _best(scale: Scale, model: str, batch_size: int, least_ratio: float, least_rate: float) -> Iterator[Figure]:
    """Each side alone, compiled and not, with the whole batch or the largest part that fits; then the faster ones compared."""
    import torch

    best: dict[str, float] = {}
    for side in installed_sides():
        for compiled in (False, True) if scale.device == "cuda" else (False,):
            setting = Setting(model, batch_size, scale.device, scale.precision, compile=compiled)
            name = f"{side}, compiled" if compiled else side
            if side == "ours":
                setting = replace(setting, micro_batch_size=fitting_micro_batch(setting))
                yield Figure(f"{name}: pairs at a time", setting.micro_batch_size or batch_size)
            while True:
                batches = ReadyBatches(setting, _different(scale))
                with contextlib.suppress(torch.OutOfMemoryError):
                    found = measure(setting, batches, *_rounds(scale), (side,))[side]
                    break
                free_memory()
                setting = _smaller(setting, side)
                tried = setting.micro_batch_size or setting.batch_size
                yield Figure(f"{name}: did not fit; pairs at a time", tried)
            yield from _figures(name, setting, found, batches, scale)
            if compiled:
                torch._dynamo.reset()
            free_memory()
            best[side] = max(best.get(side, 0.0), setting.batch_size / found.median_s)
    yield Figure("best of ours", best["ours"], "pairs/s", Aim(least=least_rate, on=ON_HOPPER))
    if "open_clip" in best:
        ratio = best["ours"] / best["open_clip"]
        yield Figure("best of ours over best of open_clip's", ratio, "x", Aim(least=least_ratio, on=ON_CUDA))
    else:
        yield Figure("open_clip", "not installed: no comparison")


def _smaller(setting: Setting, side: str) -> Setting:
    """A setting that needs less memory: fewer pairs at a time of ours, and a smaller batch for open_clip, which favours it,
    since nothing is embedded twice then.
    """
    if side == "ours":
        micro = setting.micro_batch_size or setting.batch_size
        if micro > 1:
            return replace(setting, micro_batch_size=micro * 3 // 4)
    return _halved(setting)


def _halved(setting: Setting) -> Setting:
    import torch

    if setting.batch_size < 4:
        raise torch.OutOfMemoryError(f"{setting.name}: {setting.batch_size} pairs do not fit")
    return replace(setting, batch_size=setting.batch_size // 2)


def _figures(name: str, setting: Setting, found: Measured, batches: ReadyBatches, scale: Scale) -> Iterator[Figure]:
    """Rate, utilisation and memory of one side."""
    from model.config import get_architecture

    yield _rate(name, setting, found)
    flops = batch_flops(get_architecture(setting.name), batches.lengths) / len(batches.texts)
    share = utilisation(flops / found.median_s, scale.card)
    if share is not None:
        yield Figure(f"{name}: utilisation", share)
    yield Figure(f"{name}: peak memory", found.peak_bytes / 2**30, "GiB")


def _rate(name: str, setting: Setting, found: Measured) -> Figure:
    return Figure(name, setting.batch_size / found.median_s, "pairs/s")


def _rounds(scale: Scale) -> tuple[int, int]:
    """(rounds, steps of a round)"""
    return scale.size((2, 20), (1, 1))


def _different(scale: Scale) -> int:
    """Batches of captions until they repeat: more than a round has."""
    return WARM_UP_STEPS + _rounds(scale)[1]

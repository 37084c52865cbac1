"""Compares the training step with open_clip's, in one process, in turns: pairs per second, utilisation and memory of each side.

Architecture, weights, images, captions, threads and precision are the same; each step has new captions. Steps of a round follow
each other without waiting for the device: CUDA events time them. Without the `test` extra, our side can be measured alone.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jobs.benchmarks.model_flops import batch_flops, utilisation
from jobs.benchmarks.peak_memory import peak_memory
from jobs.benchmarks.step_batches import Batches, LoadedBatches, ReadyBatches, Source
from jobs.benchmarks.step_sides import SIDES, Setting, Side

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Measured:
    """One side's figures.

    Attributes:
        first_loss: before the first step.
        step_s: seconds of a step, one figure a round.
        peak_bytes: largest amount of memory that model, optimizer, batch and step hold together.
    """

    first_loss: float
    step_s: tuple[float, ...]
    peak_bytes: int

    @property
    def median_s(self) -> float:
        return median(self.step_s)


def run(
    setting: Setting,
    rounds: int,
    steps: int,
    threads: int | None = None,
    sides: Sequence[str] = tuple(SIDES),
    workers: int | None = None,
) -> str:
    """Measures the sides and returns their figures as text.

    Args:
        workers: decode images of a data set in so many processes of each side; None: images lie ready.
    """
    import torch

    from model.config import get_architecture

    if threads:
        torch.set_num_threads(threads)
    ready = ReadyBatches(setting, different=WARM_UP_STEPS + rounds * steps)
    with tempfile.TemporaryDirectory() as temporary:
        loaded = None
        if workers is not None:
            samples = max(1_000, 4 * setting.batch_size)
            loaded = LoadedBatches(setting, Path(temporary) / "data", samples, workers)
        found = measure(setting, loaded or ready, rounds, steps, sides)
    flops = batch_flops(get_architecture(setting.name), ready.lengths) / len(ready.texts)
    lines = [_headline(setting, ready.lengths, workers)]
    losses = [one.first_loss for one in found.values()]
    if len(losses) == 2 and loaded is None:
        difference = abs(losses[0] / losses[1] - 1)
        lines.append(f"loss at step 0: {losses[0]:.7f} and {losses[1]:.7f}, relative difference {difference:.1e}")
    for side, one in found.items():
        lines.append(
            f"{side:10}{one.median_s:9.4f} s a step{setting.batch_size / one.median_s:11.2f} pairs/s"
            f"{_rate(flops / one.median_s, setting)}{one.peak_bytes / 2**30:9.2f} GiB"
        )
    if len(found) == 2:
        ratios = [theirs / ours for ours, theirs in zip(*(one.step_s for one in found.values()), strict=True)]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"pairs/s, ours over open_clip's: {median(ratios):.2f}x ({shown})")
    return "\n".join(lines)


def measure(
    setting: Setting, source: Source, rounds: int, steps: int, sides: Sequence[str] = tuple(SIDES)
) -> dict[str, Measured]:
    """Builds the sides one after the other, then times `steps` steps of each in turn, `rounds` times."""
    import torch

    from model.clip import build_clip

    torch.manual_seed(0)
    clip = build_clip(setting.name)
    built: dict[str, Side] = {}
    losses, peaks = {}, {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with _process_group(setting):
        for name in sides:
            with peak_memory(setting.device) as peak:
                built[name] = SIDES[name](setting, copy.deepcopy(clip))
                losses[name] = _warm_up(built[name], source)
            peaks[name] = peak.bytes
        for _ in range(rounds):
            for name, side in built.items():
                times[name].append(_round(side, source, steps, setting.device))
    return {name: Measured(losses[name], tuple(times[name]), peaks[name]) for name in sides}


def _warm_up(side: Side, source: Source) -> float:
    """Takes the first steps. Returns the first one's loss; the batches are gone then, as in a run of that side alone."""
    with side.flags(), source(side) as batches:
        losses = [side.step(*next(batches)) for _ in range(WARM_UP_STEPS)]
    return float(losses[0])


def _round(side: Side, source: Source, steps: int, device: str) -> float:
    with side.flags(), source(side) as batches:
        return timed(side, batches, steps, device)


def timed(side: Side, batches: Batches, steps: int, device: str) -> float:
    """Seconds of a step. The first batch has arrived when the time begins; nothing is read from the device before it ends."""
    import torch

    first = next(batches)
    if device != "cuda":
        began = time.perf_counter()
        _take(side, first, batches, steps)
        return (time.perf_counter() - began) / steps
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    _take(side, first, batches, steps)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / steps


def _take(side: Side, first: tuple[object, object], batches: Batches, steps: int) -> None:
    side.step(*first)  # type: ignore[arg-type]
    for _ in range(steps - 1):
        side.step(*next(batches))


@contextlib.contextmanager
def _process_group(setting: Setting) -> Iterator[None]:
    """A process group of this process alone, if the setting needs one."""
    if not setting.ddp:
        yield
        return
    import torch
    import torch.distributed as dist

    from training.distributed import init_world

    with tempfile.TemporaryDirectory() as temporary:
        init_world(0, 1, f"file://{temporary}/meet", torch.device(setting.device))
        try:
            yield
        finally:
            dist.destroy_process_group()


def _headline(setting: Setting, lengths: Sequence[int], workers: int | None) -> str:
    import torch

    where = f"{torch.get_num_threads()} threads" if setting.device == "cpu" else torch.cuda.get_device_name()
    micro = f"{setting.micro_batch_size} at a time" if setting.micro_batch_size else ""
    told = {"compiled": setting.compile, "checkpointed": setting.checkpointing, micro: micro, "DDP": setting.ddp}
    options = [option for option, is_set in told.items() if is_set]
    if workers is not None:
        options.append(f"loaded with {workers} workers a side")
    return (
        f"{setting.name}, {setting.batch_size} pairs, captions of {median(lengths):.0f} tokens in the median and "
        f"{max(lengths)} at most, {', '.join([where, setting.precision, *options])}"
    )


def _rate(flops_per_s: float, setting: Setting) -> str:
    """Useful FLOPS, and the share of the device's peak (MFU) if that is known."""
    import torch

    text = f"{flops_per_s / 1e12:9.3f} TFLOP/s"
    if setting.device != "cuda" or setting.precision != "bfloat16":
        return text
    share = utilisation(flops_per_s, torch.cuda.get_device_name())
    return text if share is None else f"{text} ({share:.1%} MFU)"

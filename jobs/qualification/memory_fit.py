"""Memory: what `micro_batch_size=auto` chooses against what fits, and how the allocator copes with batches of different sizes.

A smaller card is imitated by a tensor that leaves so much memory free.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace

from jobs.benchmarks.peak_memory import peak_memory
from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import OurSide, Setting, our_world
from jobs.benchmarks.synthetic_data import captions
from jobs.benchmarks.training_step import measure
from jobs.qualification.judgement import ON_CUDA, Aim, Figure, SkipError
from jobs.qualification.scale import Scale

WITHIN = Aim(least=0.85, most=1.0, on=ON_CUDA)


def fitting_micro_batch(setting: Setting) -> int | None:
    """The choice of `micro_batch_size=auto` for our side, before compilation; None: the whole batch."""
    from model.clip import build_clip

    return _choose(OurSide(replace(setting, compile=False), build_clip(setting.name)), setting.batch_size)


def whole_batch(scale: Scale, model: str, batch_size: int) -> Setting:
    """A setting whose batch fits as a whole: the one that is asked for, halved until it does."""
    setting = Setting(model, batch_size, scale.device, scale.precision)
    while setting.batch_size > 1 and fitting_micro_batch(setting) is not None:
        setting = replace(setting, batch_size=setting.batch_size // 2)
    return setting


def micro_batch(scale: Scale) -> Iterator[Figure]:
    """The choice of auto for several batches, its peak memory, the largest that fits, and the cost of embedding twice."""
    for batch_size in scale.size((1024, 2048, 4096), (8,)):
        setting = Setting(scale.model, batch_size, scale.device, scale.precision)
        micro = fitting_micro_batch(setting)
        yield Figure(f"{batch_size:,} pairs: auto", micro or batch_size, "at a time")
        peak = _peak_bytes(replace(setting, micro_batch_size=micro), ReadyBatches(setting, 2, raw=True))
        yield Figure(f"{batch_size:,} pairs: peak memory", peak / 2**30, "GiB")
    whole = whole_batch(scale, scale.model, scale.size(1024, 8))
    halved = replace(whole, micro_batch_size=whole.batch_size // 2)
    batches, steps = ReadyBatches(whole, scale.size(12, 3), raw=True), scale.size(10, 1)
    seconds = [measure(one, batches, 1, steps, ("ours",))["ours"].median_s for one in (whole, halved)]
    yield Figure("a step of two micro-batches over one of the whole batch", seconds[1] / seconds[0], "x")
    for gib in sizes_gib(scale, 12, 24):
        yield from _largest_that_fits(scale, gib)


def small_card(scale: Scale) -> Iterator[Figure]:
    """ViT-B/32 in 8 and 12 GB: how many pairs are embedded at a time, and how fast that is."""
    for gib in sizes_gib(scale, 8, 12):
        with only_free(scale, gib):
            setting = Setting(scale.model, scale.size(1024, 8), scale.device, scale.precision)
            micro = fitting_micro_batch(setting)
            yield Figure(f"{gib} GiB: auto", micro or setting.batch_size, "at a time", Aim(least=2))
            setting = replace(setting, micro_batch_size=micro)
            found = measure(setting, ReadyBatches(setting, 7, raw=True), 1, scale.size(5, 1), ("ours",))["ours"]
            yield Figure(f"{gib} GiB: rate", setting.batch_size / found.median_s, "pairs/s")
            yield Figure(f"{gib} GiB: peak memory", found.peak_bytes / 2**30, "GiB", Aim(most=gib, on=ON_CUDA))


def allocator(scale: Scale) -> Iterator[Figure]:
    """30 steps whose captions differ in length: retries, calls of cudaMalloc, and memory that is reserved in vain."""
    import torch

    from model.clip import build_clip

    if scale.device != "cuda":
        raise SkipError("the CPU has no caching allocator")
    setting = Setting(scale.model, scale.size(4096, 8), scale.device, scale.precision)
    setting = replace(setting, micro_batch_size=fitting_micro_batch(setting))
    free_memory()
    side, batches = OurSide(setting, build_clip(setting.name)), ReadyBatches(setting, 30, raw=True)
    with batches(side) as each:
        for _ in range(10):
            side.step(*next(each))
        before = torch.cuda.memory_stats()
        for _ in range(20):
            side.step(*next(each))
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    yield Figure("pairs at a time", setting.micro_batch_size or setting.batch_size)
    yield Figure("retries in 30 steps", after["num_alloc_retries"], aim=Aim(most=0))
    calls = after["num_device_alloc"] - before["num_device_alloc"]
    yield Figure("calls of cudaMalloc in the last 20 steps", calls, aim=Aim(most=2))
    reserved, allocated = (after[f"{kind}_bytes.all.peak"] for kind in ("reserved", "allocated"))
    yield Figure("peak reserved", reserved / 2**30, "GiB")
    yield Figure("peak reserved over peak allocated", reserved / allocated, "x", Aim(most=1.15))


def allocator_expandable(scale: Scale) -> Iterator[Figure]:
    """The same with expandable segments."""
    import torch

    if scale.device == "cuda":
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    yield from allocator(scale)


def sizes_gib(scale: Scale, *wanted: float) -> list[float]:
    """Sizes of memory to imitate; where the card has less than one of them, what it has. On a CPU only one, in name."""
    import torch

    if scale.device != "cuda":
        return list(wanted[:1])
    free_memory()
    free = torch.cuda.mem_get_info()[0] // (2**30 / 10) / 10
    return list(dict.fromkeys(min(gib, free) for gib in wanted))


@contextlib.contextmanager
def only_free(scale: Scale, gib: float) -> Iterator[None]:
    """Occupies the GPU's memory but for some, inside the context; does nothing on a CPU or a card that has no more."""
    import torch

    if scale.device != "cuda":
        yield
        return
    free_memory()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - int(gib * 2**30)), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del ballast
        free_memory()


def _largest_that_fits(scale: Scale, gib: float) -> Iterator[Figure]:
    """The choice of auto over the largest micro-batch that a step survives, found by trial."""
    import torch

    setting = Setting(scale.model, scale.size(2048, 8), scale.device, scale.precision)
    batches = ReadyBatches(setting, 2, raw=True)
    with only_free(scale, gib):
        chosen = fitting_micro_batch(setting) or setting.batch_size
        fits, fails = 0, setting.batch_size + 1
        trial = chosen
        while fails - fits > max(1, fits // 25):
            try:
                _peak_bytes(replace(setting, micro_batch_size=trial), batches)
                fits = trial
            except torch.OutOfMemoryError:
                fails = trial
            free_memory()
            trial = min(trial * 5 // 4 + 1, (fits + fails) // 2) if fits else trial * 3 // 4
            if trial < 1 or trial == fits:
                break
    yield Figure(f"{gib} GiB free: auto", chosen, "at a time")
    yield Figure(f"{gib} GiB free: largest that fits", fits, "at a time")
    yield Figure(f"{gib} GiB free: auto over the largest", chosen / fits if fits else "nothing fits", aim=WITHIN)


def _peak_bytes(setting: Setting, batches: ReadyBatches) -> int:
    """Peak memory of a model, its optimizer, a batch and two steps."""
    from model.clip import build_clip

    with peak_memory(setting.device) as peak:
        side = OurSide(setting, build_clip(setting.name))
        with batches(side) as each:
            for _ in range(2):
                side.step(*next(each))
    return peak.bytes


def free_memory() -> None:
    """Returns what is not used any more to the device: a failed step leaves its graph in reference cycles."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not used


def _choose(side: OurSide, batch_size: int) -> int | None:
    from model.tokenizer import tokenize
    from training.step.micro_batch import CaptionLengths, resolve_micro_batch_size

    world, longest = our_world(side.setting), side.clip.architecture.context_length
    lengths = CaptionLengths.of((tokenize(captions(1024, seed=0), longest) != 0).sum(1).tolist(), longest)
    return resolve_micro_batch_size("auto", side.clip, side.optimizer, world, batch_size, side.autocast, lengths)

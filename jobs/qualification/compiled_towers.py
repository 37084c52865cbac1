"""torch.compile: how many graphs, how many more once captions differ in length, speed, memory and time to start.

Each variant is compiled afresh: plain, with activation checkpointing, and inside DDP that is forced to communicate.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jobs.benchmarks.peak_memory import peak_memory
from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import OurSide, Setting
from jobs.benchmarks.training_step import measure, timed
from jobs.qualification.forced_ranks import forced_world
from jobs.qualification.judgement import Aim, Figure
from jobs.qualification.memory_fit import whole_batch
from jobs.qualification.scale import Scale

VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "checkpointed": {"checkpointing": True}, "inside DDP": {"ddp": True}}
WARM_UP_STEPS = 3
"""The second step sees captions of another length, for which the text tower is compiled again, for any length."""


def compiled(scale: Scale) -> Iterator[Figure]:
    """Graphs, recompilations, speed and memory of each variant; and the same without compilation."""
    setting = replace(whole_batch(scale, scale.model, scale.size(1024, 8)), compile=True)
    setting = replace(setting, backend=scale.size("inductor", "eager"))  # generating code takes a CPU a minute
    yield Figure("pairs a step", setting.batch_size)
    steps = scale.size(20, 2)
    batches = ReadyBatches(setting, WARM_UP_STEPS + steps)
    for name, options in VARIANTS.items():
        with forced_world(scale) if "ddp" in options else contextlib.nullcontext():
            yield from _variant(name, replace(setting, **options), batches, steps)
    eager = measure(replace(setting, compile=False), batches, 2, steps, ("ours",))["ours"]
    yield Figure("not compiled", setting.batch_size / eager.median_s, "pairs/s")
    yield Figure("not compiled: peak memory", eager.peak_bytes / 2**30, "GiB")


def _variant(name: str, setting: Setting, batches: ReadyBatches, steps: int) -> Iterator[Figure]:
    import torch
    from torch._dynamo.utils import counters

    from model.clip import build_clip

    torch._dynamo.reset()
    counters.clear()
    began = time.perf_counter()
    with peak_memory(setting.device) as peak:
        side = OurSide(setting, build_clip(setting.name))
        with batches(side) as each:
            for _ in range(WARM_UP_STEPS):
                side.step(*next(each))
            if setting.device == "cuda":
                torch.cuda.synchronize()
            yield Figure(f"{name}: start", time.perf_counter() - began, "s")
            graphs = counters["stats"]["unique_graphs"]
            seconds = timed(side, each, steps, setting.device)
    yield Figure(f"{name}: graphs", graphs, aim=Aim(2, 4))
    more = counters["stats"]["unique_graphs"] - graphs
    yield Figure(f"{name}: more graphs in {steps} steps", more, aim=Aim(most=0))
    yield Figure(f"{name}: graph breaks", sum(counters["graph_break"].values()), aim=Aim(most=0))
    yield Figure(name, setting.batch_size / seconds, "pairs/s")
    yield Figure(f"{name}: peak memory", peak.bytes / 2**30, "GiB")

"""A trial of a run's first step on its workers: memory, duration, and the network between them.

In: a configuration and this rank's `World`. Out: `Finding`s, the same on every rank. Every rank calls it; nothing is written.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from training.config import TrainingConfig
from training.distributed import World, gather_objects
from training.run_plan import plan_run
from training.step.micro_batch import step_bytes
from training.trainer import Trainer

PROBE_BYTES, PROBES = 64 << 20, 3


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    fine: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.fine else 'FAIL'}  {self.what:<12} {self.text}"


def check_first_step(config: TrainingConfig, world: World) -> list[Finding]:
    """Tries one step of the run, if it fits, and discards it.

    Raises:
        torch.OutOfMemoryError: it did not fit on a GPU although it was expected to.
    """
    trainer = Trainer(plan_run(config), world)
    batch_size = config.train.global_batch_size
    micro = trainer.micro_batch_size
    work = (world, micro, batch_size, trainer._autocast, trainer.plan.caption_lengths())
    needed, free = step_bytes(trainer.clip, trainer.optimizer, *work)
    worst, left = max(gather_objects((needed, free), world), key=lambda pair: pair[0] - pair[1])
    samples = micro or math.ceil(batch_size / world.world_size)
    about = f"{samples:,} samples at a time need up to {worst / 1e9:,.1f} GB of a worker's {left / 1e9:,.1f} GB"
    if worst > left:
        cure = f"train.global_batch_size={batch_size:,}: {about}; set train.micro_batch_size=auto, or use more workers"
        return [Finding("memory", False, cure)]
    step_s = _step_s(trainer)
    findings = [
        Finding("memory", True, about),
        Finding("step", True, f"{batch_size:,} samples in {step_s:,.2f} s: {batch_size / step_s:,.1f} a second, the first one"),
    ]
    if world.world_size > 1:
        rate = _all_reduce_bytes_per_s(world)
        gradients = sum(one.nbytes for one in trainer.clip.parameters() if one.requires_grad)
        text = (
            f"{world.world_size} workers sum {rate / 1e9:,.2f} GB/s: the gradients' {gradients / 1e6:,.0f} MB take "
            f"{gradients / rate:,.2f} s of network in a step, of which the backward pass hides a part"
        )
        findings.append(Finding("all-reduce", True, text))
    return findings


def _step_s(trainer: Trainer) -> float:
    """Seconds of one step with its batch at hand, on the slowest rank."""
    loader = trainer._open_loader()
    try:
        batch = next(iter(loader))
        began = time.perf_counter()
        trainer._step(batch, loader)
        if trainer.world.device.type == "cuda":
            torch.cuda.synchronize(trainer.world.device)
        return max(gather_objects(time.perf_counter() - began, trainer.world))
    finally:
        loader.close()


def _all_reduce_bytes_per_s(world: World) -> float:
    """Bytes a second of one rank's data that are summed over all ranks."""
    data = torch.ones(PROBE_BYTES // 4, device=world.device)
    for probe in range(1 + PROBES):
        if probe == 1:  # the first one connects
            began = time.perf_counter()
        dist.all_reduce(data)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
    return min(gather_objects(PROBES * PROBE_BYTES / (time.perf_counter() - began), world))

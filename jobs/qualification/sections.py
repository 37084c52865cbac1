"""Table of the sections, in the order in which they run: the cheap and the decisive ones first."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jobs.qualification.judgement import Figure
from jobs.qualification.scale import Scale


@dataclass(frozen=True)
class Section:
    """One part of the qualification.

    Attributes:
        place: `module:function` in this package; a generator of figures.
        minutes: time after which it is ended.
        about: what it shows, in a few words.
    """

    name: str
    place: str
    minutes: float
    about: str

    def load(self) -> Callable[[Scale], Iterator[Figure]]:
        module, _, function = self.place.partition(":")
        found: Callable[[Scale], Iterator[Figure]] = getattr(importlib.import_module(f"{__package__}.{module}"), function)
        return found


SECTIONS = (
    Section("machine", "machine:versions", 0.5, "versions and the card"),
    Section("products", "machine:products", 1, "matrix products at the model's shapes, copies, the loss's products in TF32"),
    Section("gpu-tests", "gpu_tests:run", 4, "tests/gpu, if pytest is installed"),
    Section("forced", "forced_ranks:compare", 2, "one rank that is forced to communicate, against one that is alone"),
    Section("step", "step_speed:step", 3, "ViT-B/32, 1,024 pairs a step, without compilation"),
    Section("kernels", "kernel_classes:profile", 1.5, "time by kind of kernel, and the kernels of attention"),
    Section("compiled", "compiled_towers:compiled", 6, "graphs, recompilations, speed, memory; checkpointed; inside DDP"),
    Section("full-batch", "step_speed:full_batch", 5, "ViT-B/32, 4,096 pairs a step"),
    Section("micro-batch", "memory_fit:micro_batch", 3, "micro_batch_size=auto against the memory that is used"),
    Section("allocator", "memory_fit:allocator", 1, "30 steps of different sizes: retries and calls of cudaMalloc"),
    Section("allocator-expandable", "memory_fit:allocator_expandable", 1, "the same with expandable segments"),
    Section("loss", "loss_tiles:loss", 2, "the loss of one of 8 ranks: tiles, TF32, error, share of a step"),
    Section("l14", "step_speed:large_model", 4, "ViT-L/14, 128 pairs a step"),
    Section("rn50", "step_speed:resnet", 3, "RN50, with cudnn.benchmark on and off"),
    Section("trainer", "whole_trainer:trainer", 4, "the whole trainer on made images, against steps without a loader"),
    Section("small-card", "memory_fit:small_card", 2, "8 and 12 GB: the batch that fits"),
)

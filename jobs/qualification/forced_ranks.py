"""One rank that is forced to communicate, against one that is alone: the same loss, gradients and run.

NCCL (gloo on a CPU), DDP with its communication hook, the all-gather of features and the reduce-scatter of their gradients are
identities for one rank, which a single GPU can only test by making them all the same.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from jobs.benchmarks.synthetic_data import captions, write_data_set
from jobs.qualification.judgement import Aim, Figure
from jobs.qualification.scale import Scale

if TYPE_CHECKING:
    from torch import Tensor

    from model.clip import CLIP
    from training.distributed import World

SAME = Aim(most=1e-4)
"""Largest relative difference of values in float32: some kernels add in another order each time."""


@dataclass(frozen=True)
class Case:
    """A loss and a way to compute its gradients."""

    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    repeated_captions: bool = False
    micro_batch_size: int | None = None


CASES = {
    "contrastive": Case(),
    "cached features": Case(micro_batch_size=5),
    "repeated captions": Case(repeated_captions=True),
    "sigmoid": Case("sigmoid"),
}


def compare(scale: Scale) -> Iterator[Figure]:
    """Loss and gradients of each case, then a whole run."""
    from training.distributed import World

    alone = World(0, 1, scale.torch_device)
    with forced_world(scale) as forced:
        for name, case in CASES.items():
            losses, gradients = zip(*(gradients_of(case, world) for world in (alone, forced)), strict=True)
            yield Figure(f"{name}: relative difference of the loss", relative_difference(*losses), aim=SAME)
            largest = max(map(relative_difference, *gradients))
            yield Figure(f"{name}: relative difference of gradients", largest, aim=SAME)
        yield from _runs(scale, alone, forced)


@contextlib.contextmanager
def forced_world(scale: Scale) -> Iterator[World]:
    """A world of one rank that communicates, over NCCL or gloo."""
    import torch.distributed as dist

    from training.distributed import init_world

    with tempfile.TemporaryDirectory() as temporary:
        world = init_world(0, 1, f"file://{temporary}/meet", scale.torch_device, timeout_s=60, forced=True)
        try:
            yield world
        finally:
            dist.destroy_process_group()


def gradients_of(case: Case, world: World) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one batch of 16 pairs, in float32, in the given world."""
    import torch

    from training.distributed import parallel
    from training.loss import contrastive_loss, sigmoid_loss
    from training.step.gradients import compute_gradients
    from training.step.repeated_captions import number_captions

    clip, images, texts = _batch(case, world)
    positives = number_captions(texts, len(texts), world) if case.repeated_captions else None
    loss: Any = sigmoid_loss if case.loss == "sigmoid" else contrastive_loss
    model = parallel(clip, world)
    result = compute_gradients(
        model,
        (images, texts),
        lambda *features: loss(*features, world, len(texts), 4, positives),
        case.micro_batch_size,
    )
    world.communication.backward_ended()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return result.loss.detach(), [parameter.grad for parameter in clip.parameters() if parameter.grad is not None]


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors' values, relative to the largest value."""
    largest = float(one.abs().max())
    return float((one - other).abs().max()) / largest if largest else float(other.abs().max())


def _batch(case: Case, world: World) -> tuple[CLIP, Tensor, Tensor]:
    import torch

    from model.clip import CLIP
    from model.config import get_architecture
    from model.tokenizer import tokenize

    torch.manual_seed(0)
    clip = CLIP(replace(get_architecture("debug-vit"), has_logit_bias=case.loss == "sigmoid"))
    size = clip.architecture.image_size_px
    texts = tokenize(captions(16), clip.architecture.context_length)
    if case.repeated_captions:
        texts[8:] = texts[:8]
    return clip.to(world.device), torch.randn(16, 3, size, size).to(world.device), texts


def _runs(scale: Scale, *worlds: World) -> Iterator[Figure]:
    """Losses of a short run of the trainer in each world, and the time that the forced one communicates."""
    import torch

    from jobs.cli.config import load_config
    from training.record.tracking import read_metrics
    from training.trainer import train

    steps = scale.size(20, 3)
    with tempfile.TemporaryDirectory() as temporary:
        write_data_set(f"{temporary}/data", 128, distinct_images=8)
        found = []
        for number, world in enumerate(worlds):
            overrides = [
                f"data.uri={temporary}/data",
                f"run.dir={temporary}/{number}",
                f"train.max_steps={steps}",
                "train.device=auto",
                "train.precision=float32",
                "cluster.use_gpu=auto",
                "tracking.wandb_mode=disabled",
            ]
            train(load_config("debug_cpu", overrides), world)
            rows = read_metrics(Path(temporary) / str(number) / "debug_cpu" / "metrics.jsonl")
            found.append([row for row in rows if "loss" in row])
    losses = [torch.tensor([row["loss"] for row in rows]) for rows in found]
    yield Figure("run of the trainer: relative difference of losses", relative_difference(*losses), aim=Aim(most=1e-3))
    seconds = [median(row["compute_s"] + row["communication_s"] for row in rows) for rows in found]
    yield Figure("run of the trainer: a step alone", seconds[0] * 1e3, "ms")
    yield Figure("run of the trainer: a step that communicates", seconds[1] * 1e3, "ms")
    yield Figure("of it, waiting for collectives", median(row["communication_s"] for row in found[1]) * 1e3, "ms")

"""The metrics of one step over all ranks: a row of metrics.jsonl.

In: each rank's shares and times. Out: `StepMetrics`, the same on every rank, by one small all-gather.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from training.clock import Lap
from training.distributed import World, all_ranks
from training.loss import ContrastiveResult


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step, under the names and in the order of metrics.jsonl.

    Attributes:
        loss: mean of both directions, over the global batch.
        logit_scale, temperature: before the step; temperature is 1 / exp(logit_scale).
        grad_norm: before gradients are clipped; of one encoder 0 where it is locked.
        batch_accuracy_text_to_image: None for a loss without columns.
        repeated_caption_share: share of the global batch whose caption an earlier sample of it has too.
        samples_per_s: over all ranks, since the last logged row, without evaluation and checkpoints.
        data_wait_share: share of a step that is waiting for data.
        data_wait_s, compute_s, communication_s: seconds of a step, mean over ranks.
        slowest_data_wait_s, slowest_compute_s, slowest_communication_s: the largest of any rank.
        skipped_samples: damaged samples that were replaced, of all ranks, since the workers started.
        skipped_steps: of the whole run.
        loss_scale: after the step; 1 but for float16.
        overflowed_steps: steps of the whole run that were skipped because the scaled gradients overflowed.
        batch_fingerprint: tells the ordered keys of two batches apart.
    """

    step: int
    samples_seen: int
    epoch: int
    loss: float
    loss_image_to_text: float
    loss_text_to_image: float
    logit_scale: float
    temperature: float
    learning_rate: float
    grad_norm: float
    grad_norm_image: float
    grad_norm_text: float
    grad_norm_logit_scale: float
    batch_accuracy_image_to_text: float
    batch_accuracy_text_to_image: float | None
    repeated_caption_share: float
    samples_per_s: float
    data_wait_share: float
    data_wait_s: float
    compute_s: float
    communication_s: float
    slowest_data_wait_s: float
    slowest_compute_s: float
    slowest_communication_s: float
    skipped_samples: int
    skipped_steps: int
    loss_scale: float
    overflowed_steps: int
    batch_fingerprint: str

    def as_row(self) -> dict[str, Any]:
        row = asdict(self)
        if self.batch_accuracy_text_to_image is None:
            del row["batch_accuracy_text_to_image"]
        return row


@dataclass(frozen=True)
class RankTotals:
    """The values of one step that depend on other ranks; field names as in `StepMetrics`."""

    loss_image_to_text: float
    loss_text_to_image: float
    batch_accuracy_image_to_text: float
    batch_accuracy_text_to_image: float
    skipped_samples: float
    batch_fingerprint: float
    data_wait_s: float
    compute_s: float
    communication_s: float
    slowest_data_wait_s: float
    slowest_compute_s: float
    slowest_communication_s: float

    @property
    def loss(self) -> float:
        return (self.loss_image_to_text + self.loss_text_to_image) / 2


def rank_shares(result: ContrastiveResult, world: World) -> dict[str, float]:
    """This rank's share of losses and accuracies, under their names in `RankTotals`. Waits for the device."""
    shares = {
        "loss_image_to_text": result.loss_image_to_text,
        "loss_text_to_image": result.loss_text_to_image,
        "batch_accuracy_image_to_text": result.accuracy_image_to_text,
        "batch_accuracy_text_to_image": result.accuracy_text_to_image,
    }
    with world.communication.blocked():
        values = torch.stack([share.double() for share in shares.values()]).tolist()  # one copy from the device
    return dict(zip(shares, values, strict=True))


def gather_totals(shares: Mapping[str, float], skipped_samples: int, fingerprint: int, lap: Lap, world: World) -> RankTotals:
    """Shares and counts summed over ranks; times as mean and maximum. Every rank calls it.

    Args:
        shares: this rank's, from `rank_shares`.
        fingerprint: this rank's part of the batch's.
    """
    summed = {**shares, "skipped_samples": skipped_samples, "batch_fingerprint": fingerprint}
    times = {"data_wait_s": lap.data_wait_s, "compute_s": lap.compute_s, "communication_s": lap.communication_s}
    own = torch.tensor([*summed.values(), *times.values()], dtype=torch.float64)
    all_summed, all_times = all_ranks(own, world).cpu().split([len(summed), len(times)], dim=1)
    slowest = [f"slowest_{name}" for name in times]
    return RankTotals(
        **dict(zip(summed, all_summed.sum(0).tolist(), strict=True)),
        **dict(zip(times, all_times.mean(0).tolist(), strict=True)),
        **dict(zip(slowest, all_times.max(0).values.tolist(), strict=True)),
    )

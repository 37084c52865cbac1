"""Skip steps with non-finite gradients and report which samples caused them.

In: each step's features and gradient norm, on the device. Out: an optimizer step that does nothing where the norm is
non-finite, and a report of it one step later, when the device has finished, so that nothing waits. The norm is that of the
averaged gradients, so it is the same on every rank, and all ranks do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.distributed import World, gather_objects
from training.errors import RunError
from training.step.loss_scale import LossScale

KEYS_SHOWN = 5


class DivergedError(RunError):
    """The loss, a gradient or the temperature has become non-finite."""


@dataclass(frozen=True)
class _Step:
    step: int
    # float32 scalar, 1 where the step was skipped, but not for the loss scale; on the host, where it may not have arrived
    skipped: Tensor
    arrived: Callable[[], None]
    bad_samples_B: Tensor  # bool, of this rank's slice
    keys: Sequence[str]


class Guard:
    """Guards one rank's optimizer steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, world: World, loss_scale: LossScale) -> None:
        """`optimizer` must be a fused one, which skips a step while its attribute `found_inf` is 1."""
        self._optimizer, self._world, self._loss_scale = optimizer, world, loss_scale
        self._pending: _Step | None = None
        self._bad_samples_B = torch.zeros(0, dtype=torch.bool)

    def note_bad_samples(self, *features_BE: Tensor) -> None:
        """Notes the samples whose own features are non-finite."""
        with torch.no_grad():
            self._bad_samples_B = torch.stack([~torch.isfinite(features).all(-1) for features in features_BE]).any(0)

    def copies(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Pairs of the model's buffers (batch-norm statistics) and copies of them, for `arm`."""
        return [(buffer, buffer.clone()) for buffer in model.buffers()]

    def arm(
        self,
        step: int,
        grad_norm: Tensor,
        logit_scale_exp: Tensor,
        keys: Sequence[str],
        buffers: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """Makes the optimizer's next step do nothing where the gradient norm or the temperature is non-finite.

        A gradient that overflowed for the loss scale is skipped likewise, and is no event.

        Args:
            keys: of this rank's samples.
            buffers: each with its value before the step, which is then restored.
        """
        fine = torch.isfinite(grad_norm) & torch.isfinite(logit_scale_exp) & (logit_scale_exp > 0)
        self._optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
        skipped = self._loss_scale.settle(fine).float()
        for buffer, before in buffers:
            buffer.copy_(torch.where(fine, buffer, before))
        arrived: Callable[[], None] = _nothing
        if skipped.device.type == "cuda":
            on_host = torch.empty_like(skipped, device="cpu", pin_memory=True).copy_(skipped, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            skipped, arrived = on_host, event.synchronize
        self._pending = _Step(step, skipped, arrived, self._bad_samples_B, keys)

    def settle(self) -> int | None:
        """The last armed step, if it was skipped; None if it was not, or was settled already."""
        one, self._pending = self._pending, None
        if one is None:
            return None
        with self._world.communication.blocked():
            one.arrived()
        self._last = one
        return one.step if float(one.skipped) else None

    def explain(self) -> str:
        """The samples, by rank, with non-finite features in the last settled step, in words. Every rank calls it."""
        bad = [key for key, is_bad in zip(self._last.keys, self._last.bad_samples_B.tolist(), strict=True) if is_bad]
        ranks = gather_objects((len(bad), len(self._last.keys), bad[:KEYS_SHOWN]), self._world)
        parts = [
            f"rank {rank}: {count} of {of} samples ({', '.join(shown)}{', ...' if count > len(shown) else ''})"
            for rank, (count, of, shown) in enumerate(ranks)
            if count
        ]
        if not parts:
            return "every sample's features are finite"
        return f"non-finite features, {'; '.join(parts)}"


def _nothing() -> None:
    pass

"""Keeps what is no number out of the weights, and tells where it came from.

In: each step's features and gradient norm, on the device. Out: an optimizer step that does nothing where the norm is no
finite number, and, one step later, when the device has long been there, whether that was so. The norm is that of the averaged
gradients, so it is the same on every rank, and all ranks do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.distributed import World, gather_objects
from training.errors import RunError

KEYS_SHOWN = 5


class DivergedError(RunError):
    """A loss, a gradient or the temperature is no number any more."""


@dataclass(frozen=True)
class _Step:
    step: int
    spoilt: Tensor  # float32 scalar, 1 where the step was left out; on the host, perhaps not there yet
    arrived: Callable[[], None]
    bad_samples_B: Tensor  # bool, of this rank's slice
    keys: Sequence[str]


class Guard:
    """One rank's watch over its optimizer steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, world: World) -> None:
        """The optimizer is a fused one: it leaves out a step while its attribute `found_inf` is 1."""
        self._optimizer, self._world = optimizer, world
        self._pending: _Step | None = None
        self._bad_samples_B = torch.zeros(0, dtype=torch.bool)

    def look_at(self, *features_BE: Tensor) -> None:
        """Notes the samples whose own features are no numbers."""
        with torch.no_grad():
            self._bad_samples_B = torch.stack([~torch.isfinite(features).all(-1) for features in features_BE]).any(0)

    def copies(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The model's buffers (batch norm's statistics) with copies of them, for `arm`."""
        return [(buffer, buffer.clone()) for buffer in model.buffers()]

    def arm(
        self,
        step: int,
        grad_norm: Tensor,
        logit_scale_exp: Tensor,
        keys: Sequence[str],
        buffers: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """Before the optimizer's step: it shall do nothing where the norm is no finite number, or the temperature is none.

        Args:
            keys: of this rank's samples.
            buffers: with what they were before the step, to which they go back then.
        """
        fine = torch.isfinite(grad_norm) & torch.isfinite(logit_scale_exp) & (logit_scale_exp > 0)
        spoilt = (~fine).float()
        self._optimizer.found_inf = spoilt  # type: ignore[attr-defined]
        for buffer, before in buffers:
            buffer.copy_(torch.where(fine, buffer, before))
        arrived: Callable[[], None] = _nothing
        if spoilt.device.type == "cuda":
            on_host = torch.empty_like(spoilt, device="cpu", pin_memory=True).copy_(spoilt, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            spoilt, arrived = on_host, event.synchronize
        self._pending = _Step(step, spoilt, arrived, self._bad_samples_B, keys)

    def settle(self) -> int | None:
        """The last armed step, if it was left out; None if it was not, or was settled already."""
        one, self._pending = self._pending, None
        if one is None:
            return None
        one.arrived()
        self._last = one
        return one.step if float(one.spoilt) else None

    def explain(self) -> str:
        """Which samples of which rank made the step that was settled last no number. Every rank calls it."""
        bad = [key for key, is_bad in zip(self._last.keys, self._last.bad_samples_B.tolist(), strict=True) if is_bad]
        ranks = gather_objects((len(bad), len(self._last.keys), bad[:KEYS_SHOWN]), self._world)
        parts = [
            f"rank {rank}: {count} of {of} samples ({', '.join(shown)}{', ...' if count > len(shown) else ''})"
            for rank, (count, of, shown) in enumerate(ranks)
            if count
        ]
        if not parts:
            return "every sample's features are finite"
        return f"features that are no numbers, {'; '.join(parts)}"


def _nothing() -> None:
    pass

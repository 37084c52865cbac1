"""Scales the loss of a float16 run, so that small gradients stay above zero (Micikevicius et al., arXiv 1710.03740).

In: the gradients of the scaled loss. Out: those of the loss, and the scale of the next step: half after a step whose gradients
overflow, which is skipped, and twice after many steps that do not. All of it stays on the device and is the same on every rank,
since gradients are averaged before. The state is part of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

INITIAL, SMALLEST = 2.0**16, 1.0
STEPS_TO_GROWTH = 2000


class LossScale:
    """The loss scale of a run; 1 for ever where it is not needed.

    Attributes:
        state: tensors by name, for checkpoints; empty where the scale is not needed.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.state: dict[str, Tensor] = {}
        if enabled:
            self.state = {
                "loss_scale/scale": torch.tensor(INITIAL, device=device),
                "loss_scale/good_steps": torch.zeros((), device=device),
                "loss_scale/overflowed_steps": torch.zeros((), device=device),
            }

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.state["loss_scale/scale"] if self.state else loss

    @torch.no_grad()
    def unscale_(self, model: nn.Module) -> None:
        """Divides the gradients by the scale, in place."""
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        if self.state and gradients:
            torch._foreach_mul_(gradients, 1 / self.state["loss_scale/scale"])

    @torch.no_grad()
    def settle(self, is_finite: Tensor) -> Tensor:
        """Adapts the scale to a step. Returns whether the step's gradients were non-finite for another reason than the scale.

        Args:
            is_finite: bool scalar, the same on every rank.
        """
        if not self.state:
            return ~is_finite
        scale, good, overflowed = self.state.values()
        is_overflow = ~is_finite & (scale > SMALLEST)
        good.copy_(torch.where(is_finite, good + 1, torch.zeros_like(good)))
        grows = good >= STEPS_TO_GROWTH
        overflowed.add_(is_overflow)
        scale.copy_(torch.where(is_overflow, (scale / 2).clamp(min=SMALLEST), torch.where(grows, scale * 2, scale)))
        good.copy_(torch.where(grows, torch.zeros_like(good), good))
        return ~is_finite & ~is_overflow

    def figures(self) -> dict[str, Any]:
        """The scale, and the steps of the run that overflowed, under their names in `StepMetrics`. Waits for the device."""
        if not self.state:
            return {"loss_scale": 1.0, "overflowed_steps": 0}
        scale, overflowed = self.state["loss_scale/scale"], self.state["loss_scale/overflowed_steps"]
        return {"loss_scale": float(scale), "overflowed_steps": int(overflowed)}

"""AdamW as in the paper, the learning-rate schedule, the clamp of the temperature, gradient norms, and the moving average of
the weights.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from model.clip import CLIP
from training.config import OptimizerConfig

MAX_LOGIT_SCALE = math.log(100)
"""exp(logit_scale) never exceeds 100 (paper, section 2.5)."""


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on everything that is not a gain or a bias (paper, section 2.5).

    Gains and biases are parameters of fewer than two dimensions: norms, biases, logit_scale, and the ViT's class token.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    spared = [parameter for parameter in parameters if parameter.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


@dataclass(frozen=True)
class Schedule:
    """The learning rate by step: a linear warm-up, then `shape` until the end.

    cosine: to zero along a half wave (paper, section 2.5; arXiv 1608.03983). constant: no change. constant_with_cooldown: no
    change, and to zero along a line over the last steps (arXiv 2405.18392).
    """

    peak: float
    shape: Literal["cosine", "constant", "constant_with_cooldown"]
    total_steps: int
    warmup_steps: int
    cooldown_steps: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step; 0 is the first."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.shape == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        left = self.total_steps - step
        return self.peak if left > self.cooldown_steps else self.peak * max(0, left) / (self.cooldown_steps + 1)


@torch.no_grad()
def clamp_logit_scale_(model: CLIP) -> None:
    """Clamps exp(logit_scale) to 100; called after every step."""
    model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


@dataclass(frozen=True)
class GradientNorms:
    """Norms of one step's gradients before they were clipped. Nothing here waits for the device.

    Attributes:
        joint: of all gradients together, ().
        parts: of each parameter that has a gradient, by name.
    """

    joint: Tensor
    parts: dict[str, Tensor]

    @torch.no_grad()
    def by_tower(self) -> Tensor:
        """Norms of image encoder, text encoder (each with its projection) and logit_scale: (3,); 0 where locked."""
        image = [norm for name, norm in self.parts.items() if name.startswith("visual.")]
        scale = [norm for name, norm in self.parts.items() if name == "logit_scale"]
        text = [norm for name, norm in self.parts.items() if not name.startswith(("visual.", "logit_"))]
        return torch.stack([_joint(norms, self.joint) for norms in (image, text, scale)])


@torch.no_grad()
def limit_gradients_(model: nn.Module, limit: float | None) -> GradientNorms:
    """Scales all gradients down to a joint norm of `limit`, if it is not None. Returns the norms before."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    parts = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True)) if gradients else {}
    norms = GradientNorms(_joint(list(parts.values()), next(model.parameters())), parts)
    if limit is not None:
        clip_grads_with_norm_(model.parameters(), limit, norms.joint)
    return norms


def _joint(norms: list[Tensor], like: Tensor) -> Tensor:
    """The norm of concatenated vectors with these norms; 0 if there are none."""
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else like.new_zeros(())


class WeightAverage:
    """The moving average of weights and batch-norm statistics, in a copy of the model.

    Its decay grows with the run, (1 + step) / (10 + step) up to `decay`, so that the random start is soon forgotten. torch's
    AveragedModel is not used: it waits for a GPU in every step.
    """

    def __init__(self, model: CLIP, decay: float) -> None:
        self.decay = decay
        self.clip = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: CLIP, step: int) -> None:
        """Moves towards the model after `step` steps."""
        averages, values = [], []
        for average, value in zip(self.clip.state_dict().values(), model.state_dict().values(), strict=True):
            if value.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - min(self.decay, (1 + step) / (10 + step)))

"""AdamW as the paper uses it, its learning-rate schedule, and the clamp of the temperature."""

from __future__ import annotations

import math

import torch
from torch import nn

from model.clip import CLIP
from training.config import OptimizerConfig

MAX_LOGIT_SCALE = math.log(100)
"""exp(logit_scale) never exceeds 100 (paper, section 2.5)."""


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on everything that is not a gain or a bias (paper, section 2.5).

    Gains and biases are what has fewer than two dimensions: norms, biases, logit_scale, and the ViT's class token.
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


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine to zero (paper, section 2.5; loshchilov 2016).

    Args:
        step: optimizer steps that are done: 0 for the first one.
        total_steps: the schedule's length, warm-up included.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def clamp_logit_scale_(model: CLIP) -> None:
    """Keeps exp(logit_scale) at 100 or below; called after every step."""
    model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

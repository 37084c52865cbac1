"""AdamW as published: what decays, how the rate moves, where the temperature ends."""

import math

import pytest
import torch

from model.clip import build_clip
from training.config import OptimizerConfig
from training.optimizer import build_optimizer, clamp_logit_scale_, learning_rate

CONFIG = OptimizerConfig(learning_rate=1e-3, warmup_steps=10)


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_gains_biases_and_the_temperature_do_not_decay(name):
    clip = build_clip(name)
    optimizer = build_optimizer(clip, CONFIG)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(clip.parameters()))
    for key, parameter in clip.named_parameters():
        spared = key.endswith("bias") or ".ln_" in key or ".bn" in key or key.startswith("ln_") or parameter.ndim < 2
        assert decay[id(parameter)] == (0.0 if spared else 0.2), key
    assert decay[id(clip.logit_scale)] == 0.0
    assert decay[id(clip.text_projection)] == 0.2


def test_the_rate_warms_up_linearly_and_falls_on_a_cosine_to_zero():
    assert learning_rate(0, 110, CONFIG) == pytest.approx(1e-4)
    assert learning_rate(9, 110, CONFIG) == pytest.approx(1e-3)
    assert learning_rate(10, 110, CONFIG) == pytest.approx(1e-3)
    assert learning_rate(60, 110, CONFIG) == pytest.approx(5e-4)
    assert learning_rate(109, 110, CONFIG) < 1e-6
    assert learning_rate(110, 110, CONFIG) == pytest.approx(0)
    without = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
    assert learning_rate(0, 100, without) == pytest.approx(1e-3)


def test_the_temperature_is_clamped_at_one_hundredth():
    clip = build_clip("debug-vit")
    with torch.no_grad():
        clip.logit_scale.fill_(9.0)
    clamp_logit_scale_(clip)
    assert clip.logit_scale.item() == pytest.approx(math.log(100))
    with torch.no_grad():
        clip.logit_scale.fill_(1.0)
    clamp_logit_scale_(clip)
    assert clip.logit_scale.item() == 1.0

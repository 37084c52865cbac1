"""AdamW as published: what decays, how the rate moves, where the temperature ends."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import get_total_norm

from model.clip import CLIP, build_clip
from model.config import get_architecture
from training.config import OptimizerConfig
from training.optimizer import Schedule, WeightAverage, build_optimizer, clamp_logit_scale_, limit_gradients_

CONFIG = OptimizerConfig(learning_rate=1e-3)


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
    schedule = Schedule(1e-3, "cosine", total_steps=110, warmup_steps=10)
    assert schedule.rate(0) == pytest.approx(1e-4)
    assert schedule.rate(9) == pytest.approx(1e-3)
    assert schedule.rate(10) == pytest.approx(1e-3)
    assert schedule.rate(60) == pytest.approx(5e-4)
    assert schedule.rate(109) < 1e-6
    assert schedule.rate(110) == pytest.approx(0)
    assert Schedule(1e-3, "cosine", 100, 0).rate(0) == pytest.approx(1e-3)


def test_a_constant_rate_stays_and_a_cooldown_ends_on_a_line_to_zero():
    assert {Schedule(1e-3, "constant", 110, 10).rate(step) for step in range(10, 110)} == {1e-3}
    cooled = Schedule(1e-3, "constant_with_cooldown", 110, 10, cooldown_steps=20)
    assert {cooled.rate(step) for step in range(10, 90)} == {1e-3}
    last = [cooled.rate(step) for step in range(90, 110)]
    assert last == pytest.approx([1e-3 * left / 21 for left in range(20, 0, -1)])
    assert cooled.rate(110) == 0


def test_gradients_are_scaled_to_the_limit_together_and_measured_only_when_asked():
    model = torch.nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    assert limit_gradients_(model, None).joint == pytest.approx(math.sqrt(6 * 9))
    assert model.bias.grad.tolist() == [3.0, 3.0]
    assert limit_gradients_(model, 1.0).joint == pytest.approx(math.sqrt(6 * 9))
    assert limit_gradients_(model, None).joint == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_the_norms_of_the_towers_are_of_their_own_parameters_and_join_to_the_whole(name):
    clip = CLIP(replace(get_architecture(name), has_logit_bias=True))
    for number, parameter in enumerate(clip.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))
    norms = limit_gradients_(clip, None)
    image, text, scale = norms.by_tower().tolist()
    assert norms.joint == pytest.approx(float(get_total_norm([one.grad for one in clip.parameters()])), rel=1e-6)
    assert image == pytest.approx(float(get_total_norm([one.grad for one in clip.visual.parameters()])), rel=1e-6)
    assert scale == pytest.approx(abs(float(clip.logit_scale.grad)))
    rest = float(norms.joint) ** 2 - image**2 - scale**2 - float(clip.logit_bias.grad) ** 2
    assert text == pytest.approx(math.sqrt(rest), rel=1e-4)


def test_a_locked_encoder_has_no_gradient_and_the_norm_zero():
    clip = build_clip("debug-vit")
    clip.lock("image")
    for parameter in clip.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    norms = limit_gradients_(clip, None)
    image, text, _ = norms.by_tower().tolist()
    assert image == 0
    assert 0 < text < float(norms.joint)


def test_the_average_moves_by_its_share_statistics_included_and_by_more_at_the_start():
    clip = build_clip("debug-rn")
    for step, share in ((10**6, 0.25), (0, 0.9), (8, 0.5)):
        average = WeightAverage(clip, 0.75)
        before = {key: value.clone() for key, value in average.clip.state_dict().items()}
        with torch.no_grad():
            for value in (*clip.parameters(), *(one for one in clip.buffers() if one.is_floating_point())):
                value.add_(4.0)
            clip.visual.bn1.num_batches_tracked.add_(1)
        average.update(clip, step)
        for key, value in average.clip.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, before[key] + 4 * share, msg=key)
        assert average.clip.visual.bn1.num_batches_tracked == clip.visual.bn1.num_batches_tracked
        assert not any(parameter.requires_grad for parameter in average.clip.parameters())


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

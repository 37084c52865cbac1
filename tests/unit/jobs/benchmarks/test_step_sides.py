"""One step of each side: the same loss, the same weights after it, by whichever way the batch is split."""

import copy
from dataclasses import replace

import pytest
import torch

from jobs.benchmarks.step_sides import OurSide, Setting, TheirSide
from model.clip import build_clip
from model.tokenizer import tokenize

SETTING = Setting("debug-vit", batch_size=6)


def weights_after_a_step(side_of, setting):
    torch.manual_seed(0)
    clip = build_clip(setting.name)
    side = side_of(setting, copy.deepcopy(clip))
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = tokenize([f"a photo of {number}" + " dogs" * number for number in range(6)], clip.architecture.context_length)
    with side.flags():
        loss = side.step(images, texts)
    assert not loss.requires_grad
    model = side.clip if isinstance(side, OurSide) else side.peer
    return float(loss), model.visual.conv1.weight.detach()


@pytest.mark.parametrize("side", [OurSide, TheirSide])
def test_micro_batches_give_the_step_of_the_whole_batch(side):
    loss, weights = weights_after_a_step(side, SETTING)
    split_loss, split_weights = weights_after_a_step(side, replace(SETTING, micro_batch_size=4))
    assert split_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(split_weights, weights, rtol=0, atol=2e-5)


def test_both_sides_have_the_same_loss_and_step():
    ours, theirs = (weights_after_a_step(side, SETTING) for side in (OurSide, TheirSide))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=2e-5)


def test_open_clip_trains_with_its_own_global_flags_and_ours_do_not_see_them():
    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark

    before, side = flags(), TheirSide(SETTING, build_clip("debug-vit"))
    with side.flags():
        assert flags() == (True, True)
    assert flags() == before
    with OurSide(SETTING, build_clip("debug-vit")).flags():
        assert flags() == before

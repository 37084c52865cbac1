"""The modified ResNet: its initialisation and its features."""

import pytest
import torch

from model.clip import build_clip
from model.resnet import ModifiedResNet


def test_a_resnets_residual_branches_start_as_zero():
    torch.manual_seed(0)
    clip = build_clip("RN50")
    assert float(clip.visual.layer2[1].bn3.weight.abs().max()) == 0
    assert float(clip.visual.attnpool.q_proj.weight.std()) == pytest.approx(2048**-0.5, rel=0.02)
    assert float(clip.visual.attnpool.positional_embedding.std()) == pytest.approx(2048**-0.5, rel=0.02)


def test_features_are_the_projection_of_the_trunk():
    torch.manual_seed(0)
    resnet = ModifiedResNet((1, 1, 1, 1), 24, 4, 64, 8).eval()
    x_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trunk_BD = resnet.trunk(x_BCHW)
        assert trunk_BD.shape == (2, 8 * 32)
        torch.testing.assert_close(resnet(x_BCHW), resnet.attnpool.c_proj(trunk_BD))

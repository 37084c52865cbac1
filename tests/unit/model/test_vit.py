"""The vision transformer: patch dropout and its features."""

import torch

from model.vit import VisionTransformer


def vit():
    torch.manual_seed(0)
    return VisionTransformer(32, 8, 64, 2, 1, 24, "quick_gelu").eval()


def test_features_are_the_projection_of_the_trunk():
    model, x_BCHW = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW), model.trunk(x_BCHW) @ model.proj)


def test_all_patches_in_any_order_give_the_same_features():
    model, x_BCHW = vit(), torch.randn(2, 3, 32, 32)
    every_BP = torch.stack([torch.randperm(16), torch.randperm(16)])
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW, every_BP), model(x_BCHW))


def test_a_dropped_patch_does_not_reach_the_features():
    model, x_BCHW = vit(), torch.randn(1, 3, 32, 32)
    changed_BCHW = x_BCHW.clone()
    changed_BCHW[:, :, :8, :8] = 0  # patch 0
    kept_BP = torch.arange(1, 16)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(changed_BCHW, kept_BP), model(x_BCHW, kept_BP))
        assert not torch.allclose(model(changed_BCHW), model(x_BCHW))

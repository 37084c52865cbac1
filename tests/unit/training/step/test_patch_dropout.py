"""Which patches are kept is a function of a sample's seed, as random as a draw."""

import torch

from model.clip import build_clip
from training.step.patch_dropout import kept_patches

SEEDS = torch.randint(-(2**63), 2**63 - 1, (4000,), generator=torch.Generator().manual_seed(0))


def test_a_sample_keeps_the_same_patches_in_any_batch_and_others_with_another_seed():
    kept = kept_patches(SEEDS, 49, 0.5)
    assert kept.shape == (4000, 24)
    assert torch.equal(kept[5:9], kept_patches(SEEDS[5:9], 49, 0.5))
    assert not torch.equal(kept[0], kept[1])
    assert (kept.diff(dim=1) > 0).all(), "each patch once, in order"
    assert int(kept.min()) == 0
    assert int(kept.max()) == 48


def test_every_patch_and_every_pair_of_patches_is_kept_equally_often():
    kept = torch.zeros(4000, 16).scatter_(1, kept_patches(SEEDS, 16, 0.5), 1.0)
    together = kept.T @ kept / 4000
    single, pairs = together.diagonal(), together[~torch.eye(16, dtype=torch.bool)]
    assert (single - 0.5).abs().max() < 0.04  # five standard deviations
    assert (pairs - 8 / 16 * 7 / 15).abs().max() < 0.04


def test_one_patch_is_always_left_and_none_is_dropped_at_zero():
    assert kept_patches(SEEDS[:3], 4, 0.99).shape == (3, 1)
    assert kept_patches(SEEDS[:3], 4, 0.0).tolist() == [[0, 1, 2, 3]] * 3


def test_the_encoder_looks_at_the_kept_patches_alone():
    torch.manual_seed(0)
    clip = build_clip("debug-vit").eval()
    images = torch.randn(2, 3, 32, 32)
    all_patches = torch.arange(16).expand(2, -1)
    kept = torch.tensor([[0, 3, 7], [1, 2, 15]])
    changed = images.clone()
    changed[0, :, 0:8, 8:16] += 1.0  # patch 1 of the first picture, which is not kept
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(images, kept_BP=all_patches), clip.encode_image(images))
        assert torch.equal(clip.encode_image(changed, kept_BP=kept), clip.encode_image(images, kept_BP=kept))
        assert not torch.equal(clip.encode_image(changed), clip.encode_image(images))

"""open_clip's side: the same weights, the same features, the same groups of parameters."""

import torch

from jobs.benchmarks.open_clip_peer import build_peer, build_peer_optimizer
from model.clip import build_clip
from training.config import OptimizerConfig
from training.optimizer import build_optimizer


def test_the_peer_has_our_weights_and_features():
    torch.manual_seed(0)
    clip = build_clip("debug-vit")
    peer = build_peer(clip)
    assert peer.training
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(peer.encode_image(images), clip.encode_image(images), rtol=1e-4, atol=1e-5)


def test_both_optimizers_decay_the_same_number_of_parameters():
    clip, config = build_clip("debug-vit"), OptimizerConfig()
    theirs = build_peer_optimizer(build_peer(clip), config)
    sizes = [
        sorted(sum(one.numel() for one in group["params"]) for group in optimizer.param_groups if group["weight_decay"])
        for optimizer in (build_optimizer(clip, config), theirs)
    ]
    assert sum(sizes[0]) == sum(sizes[1])
    assert theirs.defaults["lr"] == config.learning_rate

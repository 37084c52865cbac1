"""Accumulation with cached features is the whole slice at once: gradients, random numbers, batch-norm statistics."""

import copy
import functools

import pytest
import torch
from torch import nn

from model.clip import build_clip
from model.tokenizer import tokenize
from training.distributed import World
from training.loss import contrastive_loss
from training.step.gradients import compute_gradients

ALONE = World(rank=0, world_size=1, device=torch.device("cpu"))
CAPTIONS = ["a dog", "two cats that sleep on a red sofa", "", "a photo of the sea", "rain", "an old map of a town by a river"]


def loss_of(size):
    return functools.partial(contrastive_loss, world=ALONE, global_batch_size=size, tile_size=4)


def gradients(model, micro_batch_size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
    result = compute_gradients(model, (images, tokenize(CAPTIONS)), loss_of(6), micro_batch_size)
    return result.loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 6])
def test_a_vit_has_the_same_gradients_in_micro_batches_of_any_size(micro_batch_size):
    torch.manual_seed(1)
    whole = build_clip("debug-vit").double()
    parts = copy.deepcopy(whole)
    loss, expected = gradients(whole, None)
    found_loss, found = gradients(parts, micro_batch_size)
    torch.testing.assert_close(found_loss, loss, rtol=0, atol=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10, msg=name)


class Noisy(nn.Module):
    """Towers whose features depend on random numbers; `seen` records them."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.tower = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.seen = []

    def forward(self, images, texts):
        image_features = self.norm(self.dropout(self.tower(images)))
        self.seen.append(image_features.detach().clone())
        return image_features, self.dropout(self.tower(texts)), self.scale


def test_the_second_pass_draws_the_random_numbers_of_the_first_and_later_draws_differ():
    model = Noisy()
    images, texts = torch.randn(6, 4), torch.randn(6, 4)
    compute_gradients(model, (images, texts), loss_of(6), 2)
    assert len(model.seen) == 6
    for first, second in zip(model.seen[:3], model.seen[3:], strict=True):
        assert torch.equal(first, second)
    compute_gradients(model, (images, texts), loss_of(6), 2)
    assert not torch.equal(model.seen[6], model.seen[0])


def test_batch_norm_counts_every_micro_batch_once():
    model = Noisy(dropout=0.0)
    reference = copy.deepcopy(model)
    images, texts = torch.randn(6, 4), torch.randn(6, 4)
    compute_gradients(model, (images, texts), loss_of(6), 2)
    for part in images.split(2):
        reference(part, texts[:2])
    assert int(model.norm.num_batches_tracked) == 3
    assert torch.equal(model.norm.running_mean, reference.norm.running_mean)
    assert torch.equal(model.norm.running_var, reference.norm.running_var)

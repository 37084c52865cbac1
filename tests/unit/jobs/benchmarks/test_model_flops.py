"""Operations that a batch needs, against counts by hand."""

from dataclasses import replace

import pytest

from jobs.benchmarks.model_flops import batch_flops, utilisation
from model.config import get_architecture

TINY = get_architecture("debug-vit")


def by_hand(architecture, length):
    """Forward and backward of both towers for one pair: twice a product's size, three times (but once less for pixels)."""
    tokens = (architecture.image_size_px // architecture.patch_size_px) ** 2
    patches = 2 * tokens * architecture.vision_width * 3 * architecture.patch_size_px**2
    total = 2 * patches  # forward and the gradient of the weights: pixels have no gradient
    for width, layers, count in (
        (architecture.vision_width, architecture.vision_layers, tokens + 1),
        (architecture.text_width, architecture.text_layers, length),
    ):
        block = 2 * count * 12 * width**2 + 4 * count**2 * width
        last = 2 * (2 * count + 10) * width**2 + 4 * count * width  # keys and values of all tokens, the rest of one
        total += 3 * ((layers - 1) * block + last + 2 * width * architecture.embed_dim)
    return total


@pytest.mark.parametrize("length", [2, 3, 13, 77])
def test_operations_equal_a_count_by_hand(length):
    assert batch_flops(TINY, [length]) == pytest.approx(by_hand(TINY, length), rel=1e-6)


def test_a_batch_needs_the_sum_of_its_pairs():
    assert batch_flops(TINY, [5, 9, 9]) == pytest.approx(batch_flops(TINY, [5]) + 2 * batch_flops(TINY, [9]), rel=1e-6)
    assert batch_flops(replace(TINY, vision_layers=3), [5]) > batch_flops(TINY, [5])


def test_utilisation_is_stated_only_for_a_known_device():
    assert utilisation(98.9e12, "cuda: NVIDIA H200") == pytest.approx(0.1)
    assert utilisation(98.9e12, "NVIDIA GeForce RTX 4070") is None

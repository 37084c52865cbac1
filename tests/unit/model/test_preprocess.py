"""Normalisation, and the evaluation transform as one callable."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.preprocess import MEAN, STD, Preprocess, normalize_images


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some detail, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (224, 300), (100, 90), (225, 224)])
def test_evaluation_equals_torchvisions_transform(size):
    from torchvision import transforms

    image = picture(*size)
    reference = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    two_levels = 2.01 / 255 / min(STD)
    torch.testing.assert_close(Preprocess(224)(image), reference(image), rtol=0, atol=two_levels)


def test_normalisation_of_bytes_is_that_of_floats():
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalize_images(pixels).double(), expected, rtol=0, atol=1e-6)

"""Features of images and texts: in any batches, of whatever can be read, and a hole where it cannot."""

import numpy as np
import pytest
import torch

from model.preprocess import eval_pixels
from model.tokenizer import tokenize
from tests.support.models import random_clip
from training.config import TrainConfig
from training.encoder import Encoder

IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8) for seed in range(7)]
TEXTS = [f"a picture of {number} dogs" * number for number in range(1, 6)]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(random_clip("debug-vit"), torch.device("cpu"), TrainConfig())


def features(encoder, images, batch_size):
    return torch.cat([batch.features_BE for batch in encoder.encode_images(images, eval_pixels, batch_size)])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_images_are_encoded_in_order_in_any_batches(encoder, batch_size):
    alone = torch.cat([encoder.encode_pixels(eval_pixels(image, 32)[None]) for image in IMAGES])
    torch.testing.assert_close(features(encoder, iter(IMAGES), batch_size), alone, atol=1e-5, rtol=0)
    assert torch.allclose(alone.norm(dim=1), torch.ones(7))


def test_an_image_that_cannot_be_read_is_a_problem_and_the_others_keep_their_features(encoder, tmp_path):
    damaged = [*IMAGES[:2], b"nothing", str(tmp_path / "none.png"), IMAGES[4]]
    (batch,) = encoder.encode_images(damaged, eval_pixels, 5)
    assert batch.problems == {
        2: "the image cannot be decoded: it is in no format that is known",
        3: "No such file or directory",
    }
    whole = features(encoder, IMAGES[:5], 5)
    assert torch.equal(batch.features_BE[[0, 1, 4]], whole[[0, 1, 4]])


def test_an_error_of_another_kind_is_not_swallowed(encoder):
    def read(image, size_px):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(encoder.encode_images(IMAGES, read, 2))


def test_texts_are_encoded_as_the_model_encodes_their_tokens(encoder):
    with torch.no_grad():
        expected = encoder.clip.encode_text(tokenize(TEXTS), normalize=True)
    assert torch.equal(encoder.encode_texts(TEXTS, 256), expected)
    torch.testing.assert_close(encoder.encode_texts(TEXTS, 2), expected, atol=1e-5, rtol=0)
    assert encoder.encode_texts([], 2).shape == (0, 32)


def test_the_precision_is_that_of_the_configuration():
    half = Encoder(random_clip("debug-vit"), torch.device("cpu"), TrainConfig(precision="bfloat16"))
    exact = Encoder(random_clip("debug-vit"), torch.device("cpu"), TrainConfig(precision="float32"))
    difference = (half.encode_texts(TEXTS, 8) - exact.encode_texts(TEXTS, 8)).abs().max()
    assert 1e-4 < float(difference) < 0.1
    assert half.encode_texts(TEXTS, 8).dtype == torch.float32


def test_features_can_be_used_where_gradients_are_taken(encoder):
    weight = torch.ones(32, requires_grad=True)
    (encoder.encode_texts(TEXTS, 8) @ weight).sum().backward()
    assert weight.grad is not None

"""Normalisation, and the evaluation transform as one callable."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from model.image_loading import load_eval_image
from model.preprocess import MEAN, STD, Preprocess, eval_pixels, normalize_images


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


def encoded(image: Image.Image, format: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def test_a_path_bytes_an_image_and_an_array_are_the_same_pixels(tmp_path):
    image = picture(90, 70)
    path = tmp_path / "ein Bild é.png"
    path.write_bytes(encoded(image, "PNG"))
    expected = Preprocess(32)(image)
    for given in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), np.asarray(image)):
        assert torch.equal(Preprocess(32)(given), expected)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(eval_pixels(grey, 32), eval_pixels(image.convert("L"), 32))


def test_a_file_has_the_pixels_that_the_jobs_compute():
    data = encoded(picture(640, 480), "JPEG", quality=90)  # is decoded at a reduced size
    assert np.array_equal(eval_pixels(data, 32), load_eval_image(data, 32))
    decoded = eval_pixels(Image.open(io.BytesIO(data)), 32).astype(int)
    assert np.abs(decoded - load_eval_image(data, 32)).max() <= 8, "an image that was decoded at full size differs by levels"


def test_the_orientation_of_an_image_is_applied_once():
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(picture(80, 60), "PNG", exif=exif)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(eval_pixels(opened, 32), eval_pixels(data, 32))
    assert not np.array_equal(eval_pixels(data, 32), eval_pixels(encoded(picture(80, 60), "PNG"), 32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"is an array of uint8 with shape \(3, 8, 8\); give uint8 values"),
        (np.zeros((8, 8, 3), np.float32), "is an array of float32"),
        (np.zeros((0, 8, 3), np.uint8), "is an array without values"),
        (7, "is a int, not an image; give a path, bytes, a PIL image or an array"),
        (b"nothing", "the image cannot be decoded: it is in no format that is known"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_give(given, message):
    with pytest.raises(ValueError, match=message):
        eval_pixels(given, 32)

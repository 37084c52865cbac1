"""Pictures: the reference transform, every mode, and crops that are a function of their seed."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from model.preprocess import MEAN, STD, Preprocess, decode_image, eval_crop, normalize_images, train_crop


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some detail, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


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
    torch.testing.assert_close(Preprocess(224)(image), reference(image), rtol=0, atol=1e-5)


def test_normalisation_of_bytes_is_that_of_floats():
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalize_images(pixels).double(), expected, rtol=0, atol=1e-6)


def test_a_crop_is_a_function_of_its_seed():
    image = picture(200, 150)
    first = train_crop(image, 64, random.Random("a"))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, train_crop(image, 64, random.Random("a")))
    assert not np.array_equal(first, train_crop(image, 64, random.Random("b")))


def test_crops_keep_the_stated_share_of_the_area():
    from model.preprocess import _random_box

    rng = random.Random(0)
    for _ in range(500):
        left, top, width, height = _random_box(200, 180, rng, 0.9)
        assert 0 <= left <= left + width <= 200
        assert 0 <= top <= top + height <= 180
        assert width * height >= 0.89 * 200 * 180
        assert 0.74 <= width / height <= 1.35


@pytest.mark.parametrize("size", [(400, 20), (20, 400), (1, 1)])
def test_extreme_shapes_are_cropped_too(size):
    image = picture(*size)
    assert train_crop(image, 32, random.Random(0)).shape == (32, 32, 3)
    assert eval_crop(image, 32).shape == (32, 32, 3)


def test_a_large_jpeg_is_decoded_at_a_fraction_that_still_holds_the_target():
    image = picture(1600, 1200)
    data = encode(image, "JPEG", quality=95)
    reduced = decode_image(data, size_px=224)
    assert reduced.size == (800, 600)
    full = eval_crop(decode_image(data), 224).astype(float)
    assert np.abs(eval_crop(reduced, 224).astype(float) - full).mean() < 1.0


def test_a_small_jpeg_is_decoded_whole():
    assert decode_image(encode(picture(300, 260), "JPEG"), size_px=224).size == (300, 260)


def test_every_mode_becomes_rgb():
    grey = picture(40, 30).convert("L")
    assert decode_image(encode(grey)).getpixel((5, 5)) == (grey.getpixel((5, 5)),) * 3
    assert decode_image(encode(picture(40, 30).convert("P"))).mode == "RGB"
    assert decode_image(encode(picture(40, 30).convert("CMYK"), "JPEG")).mode == "RGB"
    assert decode_image(encode(picture(40, 30).convert("1"))).mode == "RGB"


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = Image.fromarray(np.full((10, 10), 40_000, dtype=np.uint16))
    assert decode_image(encode(deep)).getpixel((3, 3)) == (40_000 // 257,) * 3


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert decode_image(encode(image)).getpixel((3, 3)) == (255, 255, 255)


def test_a_rotated_photograph_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(picture(40, 30), "JPEG", exif=exif)).size == (30, 40)


@pytest.mark.parametrize("data", [b"", b"<html></html>", encode(picture(90, 90), "JPEG")[:400], encode(picture(90, 90))[:90]])
def test_what_is_no_whole_picture_is_a_value_error(data):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(data)

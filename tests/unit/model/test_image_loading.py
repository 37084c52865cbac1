"""Encoded pictures to pixels: close to Pillow's bicubic on the whole decode, for every kind of picture, or a ValueError."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from model.image_loading import _Opened, _random_box, load_eval_image, load_train_image

PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photograph(number: int, short_side: int) -> Image.Image:
    image = PHOTOGRAPHS[number]
    scale = short_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def drawing(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def decibel(found: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio."""
    error = np.square(found.astype(float) - expected.astype(float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def reference_crop(data: bytes, size_px: int, seed: str, snap: int = 1) -> np.ndarray:
    """Pillow's bicubic on the whole decode, of the box that the seed draws, with its corner on the grid of the reduction."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top, width, height = _random_box(image.width, image.height, random.Random(seed), 0.9)
    left, top, width, height = left // snap * snap, top // snap * snap, round(width / snap) * snap, round(height / snap) * snap
    crop = image.crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size_px, size_px), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("short_side", "size_px"), [(256, 224), (400, 224), (400, 336), (64, 32), (200, 224)])
def test_a_whole_decode_differs_from_pillows_bicubic_by_two_levels_at_most_and_rarely(format, short_side, size_px):
    for number in range(2):
        data = encode(photograph(number, short_side), format, quality=95)
        crop = load_train_image(data, size_px, random.Random(f"{number}"))
        assert crop.shape == (size_px, size_px, 3)
        assert crop.dtype == np.uint8
        expected = reference_crop(data, size_px, f"{number}")
        assert np.abs(crop.astype(int) - expected).max() <= 2
        assert decibel(crop, expected) >= 70


@pytest.mark.parametrize(("short_side", "size_px", "divisor"), [(1000, 224, 2), (2000, 224, 4), (600, 64, 4), (620, 32, 8)])
def test_a_reduced_decode_agrees_with_the_whole_one_to_38_db_and_a_mean_of_one_level(short_side, size_px, divisor):
    for number in range(2):
        data = encode(photograph(number, short_side), "JPEG", quality=95)
        opened = _Opened(data)
        assert opened.divisor(round(short_side * 0.93), size_px) == divisor
        assert opened.decode(divisor).shape[:2] == (-(-opened.height // divisor), -(-opened.width // divisor))
        crop = load_train_image(data, size_px, random.Random(f"{number}"))
        expected = reference_crop(data, size_px, f"{number}", divisor)
        assert decibel(crop, expected) >= 38
        assert np.abs(crop.astype(int) - expected).mean() <= 1


@pytest.mark.parametrize(("short_side", "size_px"), [(256, 224), (1000, 224), (500, 32)])
def test_the_evaluation_crop_agrees_with_pillows(short_side, size_px):
    for number in range(2):
        image = photograph(number, short_side)
        data = encode(image, "JPEG", quality=95)
        whole = Image.open(io.BytesIO(data))
        width, height = int(size_px * image.width / short_side), size_px
        left = round((width - size_px) / 2)
        expected = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))[:, left : left + size_px]
        assert decibel(load_eval_image(data, size_px), expected) >= 38


def test_a_crop_is_a_function_of_its_seed():
    data = encode(drawing(200, 150))
    first = load_train_image(data, 64, random.Random("a"))
    assert np.array_equal(first, load_train_image(data, 64, random.Random("a")))
    assert not np.array_equal(first, load_train_image(data, 64, random.Random("b")))


def test_crops_keep_the_stated_share_of_the_area():
    rng = random.Random(0)
    for _ in range(500):
        left, top, width, height = _random_box(200, 180, rng, 0.9)
        assert 0 <= left <= left + width <= 200
        assert 0 <= top <= top + height <= 180
        assert width * height >= 0.89 * 200 * 180
        assert 0.74 <= width / height <= 1.35


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(400, 20), (20, 400), (1, 1)])
def test_extreme_shapes_are_cropped_too(size, format):
    data = encode(drawing(*size), format)
    assert load_train_image(data, 32, random.Random(0)).shape == (32, 32, 3)
    assert load_eval_image(data, 32).shape == (32, 32, 3)


def pixel(data: bytes, size_px: int = 8) -> tuple[int, ...]:
    return tuple(load_eval_image(data, size_px)[3, 3].tolist())


def test_every_mode_becomes_rgb():
    colour = Image.new("RGB", (20, 20), (200, 40, 90))
    assert pixel(encode(colour)) == (200, 40, 90)
    assert pixel(encode(colour.quantize(4))) == (200, 40, 90)
    assert pixel(encode(colour.convert("L"))) == (94,) * 3
    assert pixel(encode(colour.convert("L"), "JPEG")) == (94,) * 3
    assert pixel(encode(Image.new("1", (20, 20), 1))) == (255,) * 3
    assert np.abs(np.subtract(pixel(encode(colour.convert("CMYK"), "JPEG")), (200, 40, 90))).max() <= 8


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = Image.fromarray(np.full((10, 10), 40_000, dtype=np.uint16))
    assert pixel(encode(deep)) == (40_000 // 257,) * 3


def test_transparency_lies_on_white():
    assert pixel(encode(Image.new("RGBA", (10, 10), (255, 0, 0, 0)))) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format):
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    data = encode(red, format, save_all=True, append_images=[blue], duration=50, lossless=True)
    assert pixel(data)[0] > 200


def test_a_rotated_photograph_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("RGB", (400, 200), (250, 0, 0))
    image.paste((0, 0, 250), (0, 0, 200, 200))  # blue on the left, so blue on top
    pixels = load_eval_image(encode(image, "JPEG", exif=exif, quality=95), 32)
    assert pixels[2, 16, 2] > 200
    assert pixels[29, 16, 0] > 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html></html>",
        b"\xff\xd8\xff",
        encode(drawing(90, 90), "JPEG")[:400],
        encode(drawing(300, 300), "JPEG")[:-900],
        encode(drawing(300, 300), "WEBP")[:-900],
        encode(drawing(90, 90))[:90],
    ],
)
def test_what_is_no_whole_picture_is_a_value_error(data):
    for load in (lambda: load_eval_image(data, 32), lambda: load_train_image(data, 32, random.Random(0))):
        with pytest.raises(ValueError, match="cannot be decoded"):
            load()

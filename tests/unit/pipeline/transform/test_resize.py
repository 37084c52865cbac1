"""Sizes, modes and pixels agree with img2dataset."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.config import ImageConfig
from pipeline.dataset.shard import StoredImage
from pipeline.transform.image import prepare_image


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colours(width: int = 60, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def prepare(data: bytes, **options) -> StoredImage:
    outcome = prepare_image(data, ImageConfig(**({"size_px": 32, "format": "png", "quality": 3} | options)))
    assert isinstance(outcome, StoredImage), outcome
    return outcome


def decoded(picture: StoredImage) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data))
    assert image.mode == "RGB"
    assert image.size == (picture.width, picture.height)
    return image


def photograph(width: int, height: int, number: int = 0) -> bytes:
    image = Image.fromarray(load_sample_images().images[number]).resize((width, height), Image.Resampling.LANCZOS)
    return encode(image, "JPEG", quality=90)


@pytest.mark.parametrize("mode", ["center_crop", "border", "keep_ratio_largest", "no"])
def test_the_resize_modes_are_img2datasets(mode):
    sizes = {"center_crop": (32, 32), "border": (32, 32), "keep_ratio_largest": (32, 21), "no": (120, 80)}
    picture = prepare(encode(colours(120, 80)), resize_mode=mode)
    assert (picture.width, picture.height) == sizes[mode]


@pytest.mark.parametrize(("format", "quality"), [("jpg", 95), ("jpg", 50), ("webp", 90), ("png", 1)])
def test_what_is_not_resized_is_encoded_as_img2dataset_does(format, quality):
    from img2dataset.resizer import Resizer

    data = photograph(640, 427)
    theirs, *_ = Resizer(256, "no", True, encode_format=format, encode_quality=quality)(io.BytesIO(data))
    ours = prepare(data, resize_mode="no", format=format, quality=quality, keep_bytes=False)
    assert ours.data == theirs


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio."""
    return float(10 * np.log10(255**2 / max(1e-9, ((one.astype(int) - other.astype(int)) ** 2).mean())))


@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border", "keep_ratio_largest", "no"])
@pytest.mark.parametrize(
    ("size", "floor"),
    [
        ((640, 427), 40),
        ((427, 640), 40),
        ((301, 400), 40),
        ((256, 256), 40),
        ((200, 130), 40),
        ((1000, 667), 40),
        ((2560, 1707), 30),
    ],
)
@pytest.mark.parametrize("only_if_bigger", [True, False])
def test_every_mode_and_size_agrees_with_img2dataset(size, floor, mode, only_if_bigger):
    """To 40 dB where the whole picture is decoded, to 30 dB where JPEG's own scaling does a part of the work."""
    from img2dataset.resizer import Resizer

    data = photograph(*size)
    theirs, width, height, *original, problem = Resizer(256, mode, only_if_bigger, encode_format="png", encode_quality=1)(
        io.BytesIO(data)
    )
    assert problem is None
    ours = prepare(data, size_px=256, resize_mode=mode, resize_only_if_bigger=only_if_bigger, quality=1)
    assert (ours.width, ours.height, ours.original_width, ours.original_height) == (width, height, *original)
    assert decibel(np.asarray(decoded(ours)), np.asarray(Image.open(io.BytesIO(theirs)))) > floor

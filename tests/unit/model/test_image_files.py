"""Image files look the same to ingestion and to training (tests/world/test_images.py has the files that people have)."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from model.image_files import orientation, prepare_transparency, read_exif, refuse_lost_pixels, to_rgb
from tests.support.runs import ROOT


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def reopened(image: Image.Image, format: str, **options) -> Image.Image:
    data = encoded(image, format, **options)
    found = Image.open(io.BytesIO(data))
    prepare_transparency(found, data)
    return found


def test_ingestion_imports_it_without_torch():
    code = "import sys, pipeline.transform.image; assert 'torch' not in sys.modules; assert 'model.image_files' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)), (100, 100, 100)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(image, pixel):
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).getpixel((1, 1)) == pixel


def test_values_of_no_known_range_are_refused():
    with pytest.raises(ValueError, match="have no range that says which are black and white"):
        to_rgb(Image.new("F", (4, 4), 0.5))


def test_exif_that_cannot_be_read_states_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert orientation(reopened(Image.new("RGB", (4, 4)), "JPEG", exif=exif)) == 6
    broken = reopened(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (read_exif(broken), orientation(broken)) == ({}, 1)


def test_a_jpeg_with_lost_pixels_is_refused_and_an_odd_one_is_not():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG", quality=90)
    refuse_lost_pixels(whole)
    refuse_lost_pixels(whole[:-2] + bytes(8) + whole[-2:])
    with pytest.raises(ValueError, match="premature end of data segment"):
        refuse_lost_pixels(whole[: len(whole) // 2] + whole[-2:])

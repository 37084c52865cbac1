"""A WebP or AVIF whose end was replaced by zeros is refused; one that ends in zeros because it was encoded so is not."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from model.zero_tails import refuse_zero_tail

PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))
FLAT = Image.new("RGB", (1200, 1200), "white")
WEBPS = ({"quality": 80}, {"quality": 10}, {"quality": 80, "method": 0}, {"lossless": True}, {"quality": 80, "exact": True})


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray | None:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, RuntimeError):
        return None


def with_alpha() -> Image.Image:
    return Image.merge("RGBA", [*PHOTOGRAPH.split(), PHOTOGRAPH.getchannel("R")])


def padded(data: bytes, share: float) -> bytes:
    kept = int(len(data) * share)
    return data[:kept] + bytes(len(data) - kept)


def check(format: str, data: bytes) -> int:
    """Checks that no padded copy which is decoded to other pixels is taken; returns how many were decoded."""
    whole, decoded = pixels(data), 0
    for share in (0.2, 0.4, 0.6, 0.8, 0.95):
        damaged = padded(data, share)
        found = pixels(damaged)
        if found is not None and not np.array_equal(found, whole):
            decoded += 1
            with pytest.raises(ValueError, match=f"the {format} ends in zeros in place of its last pixels, as if a download"):
                refuse_zero_tail(format.upper(), damaged)
    return decoded


@pytest.mark.parametrize("options", WEBPS)
@pytest.mark.parametrize("image", [PHOTOGRAPH, with_alpha()], ids=["RGB", "RGBA"])
def test_a_webp_with_a_tail_of_zeros_is_refused(image, options):
    assert check("WebP", encoded(image, "WEBP", **options))


def test_the_first_frame_of_an_animated_webp_counts():
    data = encoded(PHOTOGRAPH, "WEBP", save_all=True, append_images=[PHOTOGRAPH.rotate(90)], quality=80)
    assert check("WebP", padded(data, 0.45))
    refuse_zero_tail("WEBP", padded(data, 0.8))  # the second frame is not used


@pytest.mark.parametrize("options", [{"quality": 75}, {"quality": 95, "subsampling": "4:4:4"}])
def test_an_avif_with_a_tail_of_zeros_is_refused(options):
    assert check("AVIF", encoded(PHOTOGRAPH, "AVIF", speed=9, **options))


@pytest.mark.parametrize("image", [FLAT, FLAT.convert("L"), PHOTOGRAPH, with_alpha()], ids=["white", "L", "RGB", "RGBA"])
@pytest.mark.parametrize(("format", "options"), [*[("WEBP", one) for one in WEBPS], ("AVIF", {"speed": 9})])
def test_a_file_that_was_encoded_so_or_has_zeros_behind_it_is_taken(format, options, image):
    data = encoded(image, format, **options)
    for behind in (0, 100, 4096):
        refuse_zero_tail(format, data + bytes(behind))


def test_a_white_webp_really_ends_in_hundreds_of_zeros():
    data = encoded(FLAT, "WEBP", quality=80)
    assert len(data) - len(data.rstrip(b"\0")) > 100


def test_zeros_in_metadata_are_no_pixels():
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(600)
    for format in ("WEBP", "AVIF"):
        refuse_zero_tail(format, encoded(PHOTOGRAPH, format, exif=exif))
        refuse_zero_tail(format, encoded(PHOTOGRAPH, format, xmp=b"<x/>" + bytes(600)))


def test_other_formats_and_what_is_no_image_are_left_alone():
    refuse_zero_tail("BMP", encoded(Image.new("RGB", (64, 64)), "BMP"))
    for format in ("WEBP", "AVIF"):
        refuse_zero_tail(format, bytes(100))
        refuse_zero_tail(format, memoryview(b"RIFF" + bytes(4) + b"WEBPVP8 " + b"\xff" * 4 + bytes(100)))

"""Every image becomes upright RGB of the configured size, or a reason."""

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.config import ImageConfig
from pipeline.dataset.shard import StoredImage
from pipeline.errors import Failure
from pipeline.transform.image import prepare_image, upright_size


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


def reason(data: bytes, **options) -> tuple[str, str]:
    outcome = prepare_image(data, ImageConfig(**({"size_px": 32} | options)))
    assert isinstance(outcome, Failure), outcome
    return outcome.status, outcome.reason


def test_the_short_side_is_resized_and_the_original_size_kept_on_record():
    picture = prepare(encode(colours(120, 80)))
    assert (picture.width, picture.height) == (48, 32)
    assert (picture.original_width, picture.original_height) == (120, 80)


def test_small_pictures_are_not_enlarged_unless_wished():
    assert prepare(encode(colours(20, 10))).width == 20
    assert prepare(encode(colours(20, 10)), resize_only_if_bigger=False).height == 32


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(format):
    assert np.abs(np.asarray(decoded(prepare(encode(colours(), format)))).astype(int)).mean() > 10


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    decoded(prepare(encode(colours().convert(mode), "TIFF" if mode == "CMYK" else "PNG")))


def test_transparency_lies_on_white_and_sixteen_bits_are_scaled():
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert decoded(prepare(encode(clear))).getpixel((5, 5)) == (255, 255, 255)
    deep = Image.fromarray(np.full((40, 40), 40_000, np.uint16))
    assert decoded(prepare(encode(deep))).getpixel((5, 5)) == (155, 155, 155)


def test_a_rotated_photograph_stands_upright_and_its_exif_is_kept():
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "camera"
    picture = prepare(encode(colours(60, 40), "JPEG", exif=exif))
    assert picture.width < picture.height
    assert '"Model": "camera"' in picture.exif


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(prepare(data)).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("data", [b"<html></html>", b"\x00" * 100, b"%PDF-1.4", b"GIF8"])
def test_what_is_no_picture_is_told_by_its_magic_bytes(data):
    assert reason(data) == ("failed_to_resize", "not_an_image")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_cut_picture_is_a_reason(format):
    data = encode(colours(300, 200), format)
    assert reason(data[: len(data) * 2 // 3])[1] == "decode"


def test_a_bomb_is_refused_from_its_header():
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    assert reason(bomb) == ("failed_to_resize", "too_many_pixels")


def test_size_and_shape_can_be_asked_for():
    assert reason(encode(colours(60, 40)), min_side_px=50) == ("dropped", "too_small")
    assert reason(encode(colours(90, 20)), max_aspect_ratio=3) == ("dropped", "aspect_ratio")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does_it(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(colours(60, 40), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = prepare(data, resize_mode="no", keep_bytes=False)
    assert (picture.original_width, picture.original_height) == expected.size
    assert np.array_equal(np.asarray(decoded(picture)), np.asarray(expected))


def test_a_picture_that_needs_nothing_keeps_its_bytes():
    small = encode(colours(30, 20), "JPEG")
    options = {"size_px": 32, "format": "jpg", "quality": 95}
    assert prepare(small, **options).data == small
    assert prepare(small, **options, keep_bytes=False).data != small
    exif = Image.Exif()
    exif[0x0112] = 6
    for other in (
        encode(colours(30, 20), "PNG"),
        encode(colours(30, 20).convert("L"), "JPEG"),
        encode(colours(30, 20), "JPEG", exif=exif),
    ):
        assert prepare(other, **options).data != other


def test_an_unusual_jpeg_is_read_and_a_cut_one_is_not():
    data = photograph(300, 200)
    padded = data[:-2] + b"\x00\x00extra" + data[-2:]  # libjpeg warns; every browser shows it
    assert prepare(padded).height == 32
    assert reason(data[: len(data) // 2])[1] == "decode"


def test_exif_of_the_camera_and_of_gps_is_kept_and_the_longest_tags_are_dropped_first():
    exif = Image.Exif()
    exif[0x010F], exif[0x011A] = "Acme", 72.0
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2020:01:01 00:00:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 3.5)})
    expected = {"Make": "Acme", "XResolution": 72.0, "ExposureTime": 0.01, "DateTimeOriginal": "2020:01:01 00:00:00"}
    expected |= {"GPSLatitudeRef": "N", "GPSLatitude": [48.0, 8.0, 3.5]}
    assert json.loads(prepare(encode(colours(60, 40), "JPEG", exif=exif)).exif) == expected
    exif[0x010E] = "x" * 5000
    assert json.loads(prepare(encode(colours(60, 40), "JPEG", exif=exif)).exif) == expected


@pytest.mark.parametrize(("format", "side"), [("webp", 16_384), ("jpg", 65_501), ("png", 1_000_001)])
def test_a_side_that_the_stored_format_cannot_hold_is_named_with_its_rule(format, side, capfd):
    data = encode(Image.new("L", (side, 2)), "PNG")
    options = {"resize_mode": "no", "format": format, "quality": None, "keep_bytes": False}
    outcome = prepare_image(data, ImageConfig(**options))
    assert isinstance(outcome, Failure)
    assert (outcome.reason, outcome.message) == (
        "too_long_side",
        f"{side} x 2 pixels: the largest side of a {format} is {side - 1:,}",
    )
    largest = encode(Image.new("L", (side - 1, 2)), "PNG")
    assert prepare(largest, **options).width == side - 1
    assert capfd.readouterr().err == "", "OpenCV was not asked"


def test_a_jpeg_that_states_a_longer_side_than_libjpeg_reads_is_named_with_its_rule():
    data = encode(Image.new("RGB", (16, 16)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    outcome = prepare_image(data[:at] + struct.pack(">HH", 8, 65_535) + data[at + 4 :], ImageConfig())
    assert isinstance(outcome, Failure)
    assert outcome.message == "65535 x 8 pixels: the largest side of a jpg is 65,500"


def test_a_repaired_file_is_stored_mended_with_the_hash_of_the_fetched_one():
    whole = photograph(30, 20)
    fetched = whole[:-2]
    picture = prepare(fetched, format="jpg", quality=90)
    assert picture.data == whole
    assert picture.original_sha256 == hashlib.sha256(fetched).hexdigest()


def test_what_is_wrong_with_a_repaired_file_is_told_and_its_size_is_known():
    whole = encode(colours(), "PNG")
    odd = whole[:33] + struct.pack(">I", 3) + b"tEXta\0b" + bytes(4) + whole[33:]  # a wrong checksum
    assert reason(odd, min_side_px=1000) == ("dropped", "too_small")
    assert upright_size(odd) == (60, 40)
    with pytest.raises(Image.UnidentifiedImageError):
        upright_size(b"<html></html>" + bytes(40))

"""Files of which no pixel is lost are repaired, and those that have lost some are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from model.whole_files import has_all_scans, whole_file

PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))
KINDS = [
    ("RGB", {}),
    ("RGB", {"progressive": True}),
    ("L", {}),
    ("CMYK", {}),
    ("RGB", {"optimize": True, "restart_marker_rows": 1}),
]


def encoded(mode: str = "RGB", format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    PHOTOGRAPH.convert(mode).save(file, format, **({"quality": 85} if format == "JPEG" else {}) | options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(("mode", "options"), KINDS)
@pytest.mark.parametrize("lost_bytes", [1, 2])
def test_a_jpeg_without_its_end_is_ended(mode, options, lost_bytes):
    data = encoded(mode, **options)
    for behind in (0, 1, 600):
        whole = whole_file(data[:-lost_bytes] + bytes(behind))
        assert whole is not None
        assert np.array_equal(pixels(whole), pixels(data))


@pytest.mark.parametrize(("mode", "options"), KINDS)
def test_a_jpeg_that_lost_pixels_is_not_ended(mode, options):
    data = encoded(mode, **options)
    for kept in (40, len(data) // 3, len(data) // 2, len(data) - 200, len(data) - 12):
        assert whole_file(data[:kept]) is None
        assert whole_file(data[:kept] + bytes(len(data) - kept)) is None
    assert whole_file(data) is None, "there is nothing to repair"


@pytest.mark.parametrize("size", [(2, 3), (8, 8), (24, 17)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "subsampling": 0}])
def test_whatever_is_taken_of_a_cut_jpeg_has_all_its_pixels(size, options):
    file, taken = io.BytesIO(), 0
    PHOTOGRAPH.resize(size).save(file, "JPEG", quality=90, **options)
    data = file.getvalue()
    for kept in range(data.index(b"\xff\xda"), len(data)):
        for behind in (0, 40):
            whole = whole_file(data[:kept] + bytes(behind))
            taken += whole is not None
            assert whole is None or np.array_equal(pixels(whole), pixels(data)), kept
    assert taken >= 3, "those that lost their end marker alone"


def test_a_progressive_jpeg_that_ends_after_any_scan_but_the_last_is_not_whole():
    data = encoded(progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) == 10
    assert has_all_scans(data)
    for scan in scans:
        assert not has_all_scans(data[:scan] + b"\xff\xd9")
        assert whole_file(data[:scan]) is None
    assert not has_all_scans(b"\xff\xd8")


def test_scans_of_an_exif_thumbnail_do_not_count():
    thumbnail = encoded()
    data = encoded(progressive=True)
    with_one = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert has_all_scans(with_one)
    assert not has_all_scans(with_one[: with_one.rindex(b"\xff\xda")])


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_no_damage_raises_anything(format):
    data = encoded(format=format, **({"progressive": True} if format == "JPEG" else {}))
    rng = np.random.default_rng(0)
    for kept in range(700):
        whole_file(data[:kept])
        has_all_scans(data[:kept])
    for _ in range(300):
        damaged = bytearray(data[:1500])
        for place in rng.integers(2, len(damaged), 4):
            damaged[place] = rng.choice((0, 255, 0xDA, 0xC2, 1))
        whole_file(bytes(damaged))
        has_all_scans(memoryview(damaged))


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ wrong)


ODD_CHUNKS = {
    "a wrong checksum of a text": chunk(b"tEXt", b"a\0b", 1),
    "a text that is too long": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))),
    "an international text that is too long": chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
    "a long profile": chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 << 20))),
    "a wrong checksum of an unknown chunk": chunk(b"prVt", b"12", 1),
    "a wrong checksum of Exif": chunk(b"eXIf", b"II*\0", 1),
    **{f"a short {kind}": chunk(kind.encode(), b"") for kind in ("pHYs", "gAMA", "cHRM", "sRGB")},
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind them"])
def test_odd_metadata_of_a_png_is_dropped(name, place):
    data = encoded(format="PNG")
    whole = whole_file(data[:place] + ODD_CHUNKS[name] + data[place:])
    assert whole == data


def test_transparency_and_orientation_of_a_png_stay():
    exif = chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0")
    data = encoded("P", "PNG", transparency=0)
    odd = data[:33] + exif + ODD_CHUNKS["a wrong checksum of a text"] + data[33:]
    assert whole_file(odd) == data[:33] + exif + data[33:]


def test_a_png_without_odd_chunks_or_with_damage_is_not_changed():
    data = encoded(format="PNG")
    assert whole_file(data) is None
    assert whole_file(data[:33] + struct.pack(">I4s", 1 << 30, b"tEXt") + data[33:]) is None
    assert whole_file(b"GIF89a" + bytes(100)) is None
    assert whole_file(b"") is None

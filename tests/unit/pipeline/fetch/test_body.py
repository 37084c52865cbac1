"""Bodies are decompressed as their headers say, as far as the limit, and whole images are recognised."""

import gzip
import io
import zlib

import pytest
from PIL import Image

from pipeline.fetch.body import BrokenBodyError, TooLargeError, decompress, is_whole_image

TEXT = b"a body " * 1000  # compressed without the time, which would be in the names of tests and differ between processes


@pytest.mark.parametrize(
    ("body", "encodings"),
    [
        (TEXT, []),
        (TEXT, ["identity"]),
        (gzip.compress(TEXT, mtime=0), ["gzip"]),
        (gzip.compress(TEXT, mtime=0), [" X-GZip "]),
        (zlib.compress(TEXT), ["deflate"]),
        (zlib.compress(gzip.compress(TEXT, mtime=0)), ["gzip, deflate"]),
        (zlib.compress(gzip.compress(TEXT, mtime=0)), ["gzip", "deflate"]),
        (gzip.compress(TEXT[:10], mtime=0) + gzip.compress(TEXT[10:], mtime=0), ["gzip"]),
        (TEXT, ["gzip"]),
    ],
)
def test_encodings_are_undone_from_the_last_to_the_first(body, encodings):
    assert decompress(body, encodings, len(TEXT)) == TEXT


@pytest.mark.parametrize("label", ["gzip", "deflate"])
def test_the_limit_holds_for_the_result(label):
    packed = gzip.compress(TEXT, mtime=0) if label == "gzip" else zlib.compress(TEXT)
    with pytest.raises(TooLargeError):
        decompress(packed, [label], len(TEXT) - 1)


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (gzip.compress(TEXT, mtime=0)[:-20], "gzip"),
        (gzip.compress(TEXT, mtime=0)[:30] + b"\xff" * 20, "gzip"),
        (TEXT, "deflate"),
        (TEXT, "br"),
    ],
)
def test_what_cannot_be_decompressed_is_an_error(body, label):
    with pytest.raises(BrokenBodyError):
        decompress(body, [label], 1 << 20)


def test_an_empty_body_stays_empty():
    assert decompress(b"", ["gzip", "deflate"], 10) == b""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_whole_when_its_end_is_there(format):
    file = io.BytesIO()
    Image.effect_noise((30, 20), 50).convert("RGB").save(file, format)
    data = file.getvalue()
    assert is_whole_image(data)
    assert not any(is_whole_image(data[:end]) for end in range(len(data) - 2))


def test_what_is_no_image_is_not_whole():
    assert not is_whole_image(b"")
    assert not is_whole_image(b"<html></html>\xff\xd9")

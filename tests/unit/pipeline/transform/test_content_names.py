"""What is no supported image is named."""

import pytest

from pipeline.transform.content_names import SHORTEST_BYTES, refusal


@pytest.mark.parametrize(
    ("data", "reason", "name"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(SHORTEST_BYTES), "decode", "a JPEG image that is cut short or damaged"),
        (b"GIF8", "not_an_image", "a GIF image that is cut short or damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "not_an_image", "a WebP image that is cut short or damaged"),
        (b"RIFF\0\0\0\0AVI LIST", "not_an_image", "a sound or a film, not an image"),
        (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", "unsupported_format", "a HEIC image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41mp42", "not_an_image", "an MP4 or QuickTime film"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0miafMiPr", "unsupported_format", "a HEIF image"),
        (b"<svg>", "unsupported_format", "an SVG image, a format that is not supported"),
        (b"<!doctype html><p><svg></svg>", "not_an_image", "an HTML page"),
        (b"<?xml version='1.0'?><rss/>", "not_an_image", "an XML document"),
        (b"\xff\xfe<\0h\0t\0m\0l\0>\0", "not_an_image", "an HTML page"),
        (b'["a"]', "not_an_image", "JSON"),
        (b"Not found\n", "not_an_image", "text, not an image: 'Not found'"),
        (b"\x00\x01\x02", "not_an_image", "the magic bytes match no supported image format"),
        (b"", "not_an_image", "the magic bytes match no supported image format"),
    ],
)
def test_the_name_says_what_it_is(data, reason, name):
    found = refusal(data)
    assert found[0] == reason
    assert name in found[1]

"""Names for data that is not stored as an image: what a server sent instead, for the reason of a row."""

from __future__ import annotations

import re

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Accepted formats in Pillow's names, recognised by their magic bytes; the Content-Type is ignored."""

SHORTEST_BYTES = 32
"""No image is as short as this."""

_READ = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_OF_MANY_KINDS = ("TIFF", "BMP")
"""Formats of which Pillow reads most kinds: not CMYK with transparency, for one."""
_OTHER_IMAGES = {
    b"\x00\x00\x01\x00": "an ICO",
    b"\xff\x0a": "a JPEG XL",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "a JPEG XL",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"II\xbc\x01": "a JPEG XR",
    b"8BPS": "a Photoshop (PSD)",
    b"qoif": "a QOI",
    b"%!PS-Adobe": "a PostScript",
    b"DDS ": "a DDS",
    b"v/1\x01": "an OpenEXR",
}
_OTHERS = {
    b"%PDF-": "a PDF document",
    b"\x1f\x8b": "gzip data",
    b"PK\x03\x04": "a ZIP archive",
    b"Rar!": "a RAR archive",
    b"ID3": "an MP3 sound",
    b"OggS": "an Ogg sound or film",
    b"\x1aE\xdf\xa3": "a WebM or Matroska film",
    b"FLV\x01": "a Flash film",
    b"version https://git-lfs": "a Git LFS pointer",
}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIC"),
    **dict.fromkeys((b"jp2 ", b"jpx "), "a JPEG 2000"),
    b"crx ": "a Canon raw (CR3)",
    **dict.fromkeys((b"mif1", b"msf1"), "a HEIF"),  # last, since files of the other formats name it too
}


def refusal(data: bytes) -> tuple[str, str]:
    """(reason, message) for data that none of FORMATS could be read from."""
    begin = data[:512]
    for magic, name in _READ.items():
        if begin.startswith(magic):
            return _damaged(name, begin)
    if begin[4:8] == b"ftyp":
        return _of_brand(begin)
    for magic, name in _OTHER_IMAGES.items():
        if begin.startswith(magic):
            return _unsupported(name)
    for magic, name in _OTHERS.items():
        if begin.startswith(magic):
            return "not_an_image", f"{name}, not an image"
    if begin.startswith(b"RIFF"):
        return _damaged("WebP", begin) if begin[8:12] == b"WEBP" else ("not_an_image", "a sound or a film, not an image")
    return _of_text(begin)


def _of_brand(begin: bytes) -> tuple[str, str]:
    """The name of an ISO media file, by its main and its compatible brands."""
    size = min(len(begin), int.from_bytes(begin[:4], "big"))
    brands = [begin[8:12], *(begin[at : at + 4] for at in range(16, size - 3, 4))]
    name = next((name for brand, name in _BRANDS.items() if brand in brands), None)
    if name is None:
        return "not_an_image", "an MP4 or QuickTime film, not an image"
    if name == "AVIF":
        return _damaged(name, begin)
    return _unsupported(name)


def _of_text(begin: bytes) -> tuple[str, str]:
    """The name of data without magic bytes."""
    text = begin.replace(b"\0", b"").removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"(<\?xml|<!--|<!doctype svg|<svg)", text) and b"<svg" in text:
        return _unsupported("an SVG")
    if re.search(rb"<!doctype html|<html|<head|<body|<title|<script", text):
        return "not_an_image", "an HTML page, not an image"
    if text.startswith(b"<"):
        return "not_an_image", "an XML document, not an image"
    if text.startswith((b"{", b"[")):
        return "not_an_image", "JSON, not an image"
    if text and not re.search(rb"[^\t\n\r\x20-\x7e]", text):
        return "not_an_image", f"text, not an image: {begin.decode('ascii', 'ignore').strip()[:60]!r}"
    return "not_an_image", "the magic bytes match no supported image format"


def _unsupported(name: str) -> tuple[str, str]:
    return "unsupported_format", f"{name} image, a format that is not supported"


def _damaged(name: str, begin: bytes) -> tuple[str, str]:
    article = "an" if name == "AVIF" else "a"
    reason = "decode" if len(begin) > SHORTEST_BYTES else "not_an_image"
    kinds = ", or of a kind that is not read" if name in _OF_MANY_KINDS else ""
    return reason, f"{article} {name} image that is cut short or damaged{kinds}"

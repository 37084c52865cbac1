"""Repairs files that browsers show whole and decoders refuse: JPEGs without an end marker, PNGs with odd metadata.

In: an encoded file that could not be read. Out: the same pixels in a file that can be read, or None. What is stored is the
repaired file, so that any reader of a shard can open it.
"""

from __future__ import annotations

import re
import struct
import zlib

import simplejpeg

_END = b"\xff\xd9"
_FEW_ZEROS = 3
"""More of them are no part of a JPEG's pixels."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""A marker that is no part of coded pixels; those hold `ff 00`, and `ff d0` to `ff d7` for a restart."""
_FRAMES, _SCAN, _IMAGE_ENDS = (0xC0, 0xC1, 0xC2), 0xDA, 0xD9
"""Baseline, extended and progressive frames with Huffman codes. Arithmetic codes do not tell where they end."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset((b"tRNS", b"acTL", b"fcTL", b"fdAT"))
"""Ancillary chunks of a PNG that its pixels depend on."""


def whole_file(data: bytes | memoryview) -> bytes | None:
    """A file with the same pixels that can be read; None if there is nothing to repair, or pixels are lost."""
    if data[:2] == b"\xff\xd8":
        return _ended_jpeg(bytes(data))
    if data[:8] == _PNG:
        return _plain_png(bytes(data))
    return None


def _ended_jpeg(data: bytes) -> bytes | None:
    """A JPEG with the end marker that it lacks, zeros in its place or not.

    A few zeros may be of the pixels, which must not be completed with others; a zero after ff always is.
    """
    stripped = data.rstrip(b"\0")
    if stripped.endswith(_END):
        return None
    first = len(stripped)
    few = len(data) - first <= _FEW_ZEROS
    ends = range(first, len(data) + 1) if few else (first, first + 1) if stripped.endswith(b"\xff") else (first,)
    return next((data[:end] + _END for end in ends if _is_whole(data[:end] + _END)), None)


def _is_whole(data: bytes) -> bool:
    """True if a JPEG holds all its scans, and libjpeg has no warning at all: it has one for each missing bit."""
    if not has_all_scans(data):
        return False
    try:
        *_, colours, _ = simplejpeg.decode_jpeg_header(data)
        simplejpeg.decode_jpeg(data, "CMYK" if colours in ("CMYK", "YCCK") else "RGB")
    except ValueError:
        return False
    return True


def has_all_scans(data: bytes | memoryview) -> bool:
    """True if the scans of a JPEG hold every bit of each component's 64 coefficients.

    A progressive JPEG that is cut between two scans is decoded without a warning, only coarser.
    """
    missing: dict[int, set[int]] = {}
    at = 2
    while (found := _MARKER.search(data, at)) is not None and found[1][0] != _IMAGE_ENDS:
        begin = found.end()
        segment = data[begin + 2 : begin + int.from_bytes(data[begin : begin + 2], "big")]
        if found[1][0] in _FRAMES and len(segment) > 5:
            missing = {segment[place]: set(range(64)) for place in range(6, len(segment), 3)}
        if found[1][0] == _SCAN and segment and len(segment) == 4 + 2 * segment[0]:
            first, last, bits = segment[-3:]
            for component in segment[1:-3:2]:
                if not bits & 15:  # the lowest bit
                    missing.get(component, set()).difference_update(range(first, last + 1))
        at = begin + 2 + len(segment)
    return bool(missing) and not any(missing.values())


def _plain_png(data: bytes) -> bytes | None:
    """A PNG without ancillary chunks but those of its pixels, and an Exif chunk that is as it was written."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at : at + 12 + length]
        is_whole = chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4, "big")
        if kind[0] < ord("a") or kind in _PIXEL_CHUNKS or (kind == b"eXIf" and is_whole):
            kept.append(chunk)
        at += 12 + length
    plain = b"".join(kept)
    return plain if len(plain) < at <= len(data) else None

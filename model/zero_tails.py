"""Finds WebP and AVIF files whose end was lost and filled with zeros, as by a disk or a download that preallocates.

In: an encoded file. Out: a ValueError if pixels are lost. Decoders read the zeros as data and paint over the rest of the image.
Neither format has a checksum, and a valid WebP may end in hundreds of zeros, so each format's decoder is asked (evidence in
docs/decisions/0020-urls-and-images.md). A file that does not end in zeros is not decoded here.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

TAIL_BYTES = 24
"""Zeros at the end from which on a file is examined."""
_UNNEEDED_BYTES = 8
"""Zeros at a WebP frame's end that no pixel may need; encoders write four at most."""
_SLACK_BYTES = 16
"""Zeros at an AVIF's end that stay: a decoder reads up to two bytes ahead, and a box of size 0 ends with its file."""
_LOST = "ends in zeros in place of its last pixels, as if a download had stopped"


def refuse_zero_tail(format: str | None, data: bytes | memoryview) -> None:
    """Raises ValueError if zeros at the end of a WebP or AVIF stand for pixels that were lost."""
    if format == "WEBP" and _is_padded_webp(data):
        raise ValueError(f"the WebP {_LOST}")
    if format == "AVIF" and _is_zero(data[-TAIL_BYTES:]) and _shows_its_zeros(bytes(data)):
        raise ValueError(f"the AVIF {_LOST}")


def _is_zero(data: bytes | memoryview) -> bool:
    return not any(data)


def _is_padded_webp(data: bytes | memoryview) -> bool:
    """True if the last zeros of the first frame are not needed: its encoder would not have written them.

    libwebp reports a frame of which a byte that it needs is missing. Of a valid one, it needs all but three bytes at most.
    """
    found = _first_frame(data)
    if found is None:
        return False
    kind, frame = found
    if len(frame) <= TAIL_BYTES or not _is_zero(frame[-TAIL_BYTES:]):
        return False
    part = bytes(frame[:-_UNNEEDED_BYTES])
    body = b"WEBP" + kind + len(part).to_bytes(4, "little") + part + bytes(len(part) % 2)
    return _decode(b"RIFF" + len(body).to_bytes(4, "little") + body) is not None


def _first_frame(data: bytes | memoryview) -> tuple[bytes, bytes | memoryview] | None:
    """(b"VP8 " or b"VP8L", content) of the first frame; None if the file has none."""
    at = 12
    while at + 8 <= len(data):
        kind, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind, memoryview(data)[at + 8 : at + 8 + size]
        at += 24 if kind == b"ANMF" else 8 + size + size % 2  # the chunks of an animation's frame follow 16 bytes of its place
    return None


def _shows_its_zeros(data: bytes) -> bool:
    """True if the pixels change with the zeros at the end.

    The last bit of an AV1 tile is a 1, and what follows is padding (AV1 specification, 8.2.4), so that no pixel of a valid file
    depends on it. Zeros behind the boxes, or in metadata, change no pixel either.
    """
    kept = len(data.rstrip(b"\0")) + _SLACK_BYTES
    shown = _decode(data)
    if shown is None:
        return False  # Pillow names what is broken
    changed = _decode(data[:kept] + b"\xff" * (len(data) - kept))
    return changed is None or not np.array_equal(shown, changed)


def _decode(data: bytes) -> np.ndarray | None:
    """The first frame's pixels; None if they cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP", "AVIF")) as image:
            return np.asarray(image)
    except Exception:  # decoders raise anything on broken data
        return None

"""Decompression of bodies, and the check whether an image has arrived whole.

In: the bytes of a body and its Content-Encoding. Out: the decompressed bytes, up to a limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

ACCEPT_ENCODING = "gzip, deflate"
_GZIP = b"\x1f\x8b"
_NOT_DECODED = ("br", "zstd", "compress", "x-compress", "dcb", "dcz")


class TooLargeError(ValueError):
    """The decompressed body is over the limit."""


class BrokenBodyError(ValueError):
    """The body cannot be decompressed, or ends early."""


def decompress(body: bytes, encodings: Sequence[str], limit_bytes: int) -> bytes:
    """Undoes the encodings of Content-Encoding headers, the last one first.

    Encodings that browsers ignore are ignored. A body that is labelled as compressed but is not is returned as it is: servers
    with ready-made files label them wrongly.

    Raises:
        TooLargeError: the result has more than `limit_bytes`.
        BrokenBodyError: the compressed data is damaged, ends early, or is in a format that was not asked for.
    """
    names = [name.strip().lower() for value in encodings for name in value.split(",")]
    for name in reversed(names):
        if name in ("gzip", "x-gzip"):
            body = _gunzip(body, limit_bytes) if body.startswith(_GZIP) else body
        elif name == "deflate" and body:
            body = _inflate(body, limit_bytes)
        elif name in _NOT_DECODED and not _begins_an_image(body):
            raise BrokenBodyError(f"the body is compressed with {name}, which was not asked for")
    return body


def is_whole_image(body: bytes) -> bool:
    """True if an image ends as its format says, so that it is whole although the server announced more bytes."""
    if body.startswith(b"\xff\xd8\xff"):
        return body.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return body.rstrip(b"\0\r\n ").endswith(b"IEND\xae\x42\x60\x82")
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return len(body) >= 8 + int.from_bytes(body[4:8], "little")
    return False


def _begins_an_image(body: bytes) -> bool:
    return body.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or body[4:8] == b"ftyp"


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    """Decompresses all gzip members; what follows the last one is ignored."""
    whole = bytearray()
    while body.startswith(_GZIP):
        member = zlib.decompressobj(31)
        whole += _run(member, body, limit_bytes - len(whole))
        body = member.unused_data
    return bytes(whole)


def _inflate(body: bytes, limit_bytes: int) -> bytes:
    """Decompresses a zlib stream, or the bare deflate stream that some servers send instead."""
    if _begins_an_image(body):
        return body
    try:
        return _run(zlib.decompressobj(15), body, limit_bytes)
    except BrokenBodyError as error:
        try:
            return _run(zlib.decompressobj(-15), body, limit_bytes)
        except BrokenBodyError:
            raise error from None


def _run(stream: zlib._Decompress, body: bytes, limit_bytes: int) -> bytes:
    begin = stream.copy()
    try:
        data = stream.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        data = _up_to_damage(begin, body, limit_bytes)
        if not is_whole_image(data):
            raise BrokenBodyError(f"the compressed body is damaged: {error}") from None
        return data
    if len(data) > limit_bytes:
        raise TooLargeError
    if not stream.eof and not is_whole_image(data):
        raise BrokenBodyError("the compressed body ends early")
    return data


def _up_to_damage(stream: zlib._Decompress, body: bytes, limit_bytes: int) -> bytes:
    """Decompresses up to the damage. Often only the checksum at the end is wrong, which browsers do not compare."""
    data = bytearray()
    size, at = 1 << 16, 0
    while at < len(body) and len(data) <= limit_bytes:
        before = stream.copy()
        try:
            data += stream.decompress(body[at : at + size], limit_bytes + 1 - len(data))
            at += size
        except zlib.error:
            if size == 1:
                break
            stream, size = before, size // 16
    return bytes(data)

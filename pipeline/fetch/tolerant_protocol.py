"""Answers as servers really send them, made into answers that aiohttp's parser takes.

In: the bytes of a connection. Out: the same answer in aiohttp's parser, with a well-formed head and no bytes behind its end.

llhttp refuses many heads that every browser and curl accept: lines without a colon, a space before the colon, a repeated
Content-Length, Content-Length beside chunks, bytes after the stated length.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

MAX_HEAD_BYTES = 256 << 10
"""Longest head of an answer, as in Chromium."""
_STATUS_LINE = re.compile(rb"HTTP(?:/([0-9]+)(?:\.([0-9]+))?)?[ \t]+([0-9]{3})(?![0-9])", re.IGNORECASE)
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.[01] ([0-9]{3}) [\x20-\x7e]*+(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]++: ?[\x21-\x7e][\x20-\x7e]*+)*+\r"
)
_FRAMING = re.compile(rb"\n(?:content-length: ?([0-9]{1,18}) *\r|content-length|transfer-encoding)", re.IGNORECASE)
_END = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK_SIZE = re.compile(rb"[ \t]*0*([0-9a-f]{1,15})[ \t]*(;.*)?", re.IGNORECASE | re.DOTALL)
_WITHOUT_BODY = (204, 304)


class BrokenAnswerError(aiohttp.ClientPayloadError):
    """The body does not follow the rules of HTTP; asking again would bring the same."""


@dataclass(frozen=True)
class Head:
    """A well-formed head.

    Attributes:
        data: its bytes.
        body_bytes: number of bytes that follow; None if chunks or the end of the connection delimit them.
        chunked: the body comes in chunks.
    """

    data: bytes
    status: int
    body_bytes: int | None
    chunked: bool


def clean_head(head: bytes) -> Head | None:
    """Rewrites the head of an answer, up to its empty line; returns None if it does not begin with a status line."""
    plain = _PLAIN_HEAD.fullmatch(head)
    if plain is not None:  # as nearly all are
        framing = _FRAMING.findall(head)
        if len(framing) == 1 and framing[0]:
            status = int(plain[1])
            return Head(head + b"\n\r\n", status, 0 if status in _WITHOUT_BODY else int(framing[0]), chunked=False)
    first, *lines = head.split(b"\n")
    found = _STATUS_LINE.match(first)
    if found is None:
        return None
    fields = _fields(lines)
    chunked = any(b"chunked" in value.lower() for name, value in fields if name.lower() == b"transfer-encoding")
    lengths = {
        length.strip()
        for name, value in fields
        if name.lower() == b"content-length" and not chunked
        for length in value.split(b",")
        if re.fullmatch(rb"[ \t]*[0-9]{1,18}[ \t]*", length)
    }
    kept = [field for field in fields if field[0].lower() not in (b"content-length", b"transfer-encoding")]
    kept += [(b"Transfer-Encoding", b"chunked")] if chunked else []
    kept += [(b"Content-Length", length) for length in sorted(lengths)]  # two of them are refused by the parser
    minor = b"0" if found[1] in (None, b"0") or (found[1], found[2]) == (b"1", b"0") else b"1"
    data = b"HTTP/1.%b %b\r\n" % (minor, found[3]) + b"".join(b"%b: %b\r\n" % field for field in kept) + b"\r\n"
    status = int(found[3])
    if status in _WITHOUT_BODY:
        return Head(data, status, body_bytes=0, chunked=False)
    return Head(data, status, int(*lengths) if len(lengths) == 1 else None, chunked)


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The fields of a head's lines; lines that are none are dropped, continuation lines are joined."""
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        text = _CONTROL.sub(b" ", line.rstrip(b"\r")).rstrip(b" \t")
        if text[:1] in (b" ", b"\t") and fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + b" " + text.lstrip(b" \t"))
            continue
        name, colon, value = text.partition(b":")
        if colon and _TOKEN.fullmatch(name.strip(b" \t")):
            fields.append((name.strip(b" \t"), value.strip(b" \t")))
    return fields


class Chunks:
    """Decodes a chunked body, as its bytes arrive. Lines may end without a carriage return, and sizes be followed by spaces.

    Attributes:
        ended: the last chunk and the trailers have arrived.
        surplus: bytes that came after them.
    """

    def __init__(self) -> None:
        self.ended = False
        self.surplus = b""
        self._held = b""
        self._left = 0
        self._expects = "size"

    def decode(self, data: bytes) -> bytes:
        """Returns the next bytes of the body. Raises ValueError."""
        body = bytearray()
        self._held += data
        while not self.ended:
            if self._left:
                body += self._held[: self._left]
                self._held, self._left = self._held[self._left :], max(0, self._left - len(self._held))
                if self._left:
                    break
            line, line_feed, rest = self._held.partition(b"\n")
            if len(line) > MAX_HEAD_BYTES:
                raise ValueError(f"a line between chunks has more than {MAX_HEAD_BYTES} bytes")
            if not line_feed:
                break
            self._held = rest
            self._line(line.removesuffix(b"\r"))
        if self.ended:
            self.surplus += self._held
            self._held = b""
        return bytes(body)

    def _line(self, line: bytes) -> None:
        if self._expects == "end of chunk":
            if line:
                raise ValueError("a chunk is longer than its size")
            self._expects = "size"
        elif self._expects == "trailer":
            self.ended = not line
        else:
            found = _CHUNK_SIZE.fullmatch(line)
            if found is None:
                raise ValueError("the size of a chunk is not a hexadecimal number")
            self._left = int(found[1], 16)
            self._expects = "end of chunk" if self._left else "trailer"


class TolerantProtocol(ResponseHandler):
    """aiohttp's protocol of a connection, which sees only well-formed answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._head: bytearray | None = None
        self._body_left: int | None = None
        self._chunks: Chunks | None = None

    def set_response_params(self, **parameters: Any) -> None:
        """Prepares for the answer to the next request."""
        self._head, self._body_left, self._chunks = bytearray(), None, None
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        if self._head is None or not data:
            self._body_received(data)
            return
        self._head += data
        while self._head is not None:
            del self._head[: len(self._head) - len(self._head.lstrip(b"\r\n"))]
            end = _END.search(self._head)
            begins = bytes(self._head[:5]).upper()
            if end is None and len(self._head) <= MAX_HEAD_BYTES and begins == b"HTTP/"[: len(begins)]:
                self.start_timeout()  # of the silence after these bytes
                return
            held, self._head = bytes(self._head), None
            if len(held) > MAX_HEAD_BYTES and (end is None or end.start() > MAX_HEAD_BYTES):
                self.set_exception(HttpProcessingError(message=f"its head has more than {MAX_HEAD_BYTES} bytes"))
                self._surplus(ended=True)
                return
            head = None if end is None else clean_head(held[: end.start()])
            if head is None or end is None:
                super().data_received(held)  # the parser says what is wrong
                return
            super().data_received(head.data)
            if 100 <= head.status < 200 and head.status != 101:
                self._head = bytearray(held[end.end() :])
                continue
            self._body_left, self._chunks = head.body_bytes, Chunks() if head.chunked else None
            if len(held) > end.end():
                self._body_received(held[end.end() :])

    def _body_received(self, data: bytes) -> None:
        """Passes on a part of the body, but nothing that comes after its end."""
        if self._chunks is not None and data:
            self._chunk_received(self._chunks, data)
            return
        if self._body_left is not None and len(data) > self._body_left:
            self._surplus(ended=not self._body_left)
            data = data[: self._body_left]
        if self._body_left is not None:
            self._body_left -= len(data)
        super().data_received(data)

    def _chunk_received(self, chunks: Chunks, data: bytes) -> None:
        ended = chunks.ended
        try:
            body = chunks.decode(data)
        except ValueError as error:
            if self._payload is not None:
                self._payload.set_exception(BrokenAnswerError(str(error)))
                self._payload = None  # or the end of the connection would replace the message
            self._surplus(ended=True)
            return
        if chunks.surplus:
            self._surplus(ended)
        data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        if chunks.ended and not ended:
            data += b"0\r\n\r\n"
        if data:
            super().data_received(data)
        elif not ended:
            self.start_timeout()

    def _surplus(self, ended: bool) -> None:
        """Keeps a connection with bytes that belong to no answer from another request."""
        self.force_close()
        if ended and self.transport is not None:
            self.transport.close()  # the connection may be waiting for its next request already


class TolerantConnector(aiohttp.TCPConnector):
    """A connector whose connections are TolerantProtocols."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no public way to it; read in 3.14.
        self._factory = partial(TolerantProtocol, loop=self._loop)  # type: ignore[assignment]

"""Heads and chunks of servers become such as the parser takes."""

import asyncio

import pytest

from pipeline.fetch.tolerant_protocol import Chunks, Head, TolerantConnector, TolerantProtocol, clean_head


def test_a_good_head_stays_what_it_is():
    head = clean_head(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 12")
    assert head is not None
    assert head.data == b"HTTP/1.1 200\r\nContent-Type: image/png\r\nContent-Length: 12\r\n\r\n"
    assert (head.status, head.body_bytes, head.chunked) == (200, 12, False)


def test_a_plain_head_is_passed_on_as_it_is():
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\ncontent-length: 12\r\nX-Empty:\r\nVia: a b\r"
    assert clean_head(plain.replace(b"X-Empty:\r\n", b"")) == Head(
        plain.replace(b"X-Empty:\r\n", b"") + b"\n\r\n", 200, body_bytes=12, chunked=False
    )
    rewritten = clean_head(plain)
    assert rewritten is not None
    assert (rewritten.status, rewritten.body_bytes, rewritten.chunked) == (200, 12, False)


@pytest.mark.parametrize("length", [b"1234567890123456789", b"12x", b"1, 1", b""])
def test_a_head_whose_length_is_odd_is_not_plain(length):
    head = clean_head(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r" % length)
    assert head is not None
    assert head.data.startswith(b"HTTP/1.1 200\r\n")


def test_lines_that_are_no_fields_are_dropped():
    head = clean_head(b"http/1.0  302  Found\nno colon\nA B: 1\n: 2\nX : 3\n folded\nLocation:/\xc3\xa9\x00\n")
    assert head is not None
    assert head.data == b"HTTP/1.0 302\r\nX: 3 folded\r\nLocation: /\xc3\xa9\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "body_bytes"),
    [
        (b"Content-Length: 5\r\ncontent-length: 5", 5),
        (b"Content-Length: 5, 5", 5),
        (b"Content-Length: +5", None),
        (b"Content-Length: 5\r\nContent-Length: 6", None),
        (b"Content-Length: 5\r\nTransfer-Encoding: Chunked", None),
        (b"Content-Length: 5\r\nTransfer-Encoding: identity", 5),
        (b"X: y", None),
    ],
)
def test_the_length_of_a_body_is_known_if_it_is_stated_once(fields, body_bytes):
    head = clean_head(b"HTTP/1.1 200 OK\r\n" + fields)
    assert head is not None
    assert head.body_bytes == body_bytes
    assert head.chunked == (b"Chunked" in fields)
    assert head.data.count(b"Content-Length") == (2 if b"6" in fields else body_bytes is not None)


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body(status):
    head = clean_head(b"HTTP/1.1 %d No\r\nTransfer-Encoding: chunked" % status)
    assert head is not None
    assert (head.body_bytes, head.chunked) == (0, False)


@pytest.mark.parametrize("line", [b"SSH-2.0-x", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"", b"\xff\xd8\xff"])
def test_what_is_no_status_line_is_no_head(line):
    assert clean_head(line) is None


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_chunks_are_decoded_however_they_are_cut(size):
    data = b"5;x=y\r\nhello\r\n1 \n \n" + b"0" * 20 + b"a\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nsurplus"
    chunks = Chunks()
    body = b"".join(chunks.decode(data[at : at + size]) for at in range(0, len(data), size))
    assert body == b"hello 0123456789"
    assert chunks.ended
    assert chunks.surplus == b"surplus"


@pytest.mark.parametrize("data", [b"x\r\n", b"\r\n", b"-5\r\n", b"3\r\nabcdef\r\n", b"5" * 20 + b"\r\n", b"1" * 300_000])
def test_broken_chunks_are_an_error(data):
    with pytest.raises(ValueError, match=r"chunk"):
        Chunks().decode(data)


def test_connections_are_tolerant():
    """aiohttp has no public way to choose its protocol: this fails if a release moves the private one."""

    async def connection() -> object:
        async with TolerantConnector() as connector:
            return connector._factory()

    assert isinstance(asyncio.run(connection()), TolerantProtocol)

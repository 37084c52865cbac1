"""Answers as servers really send them: read as browsers read them, or a reason that is true."""

import asyncio
import gzip
import io
import json
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from PIL import Image

from pipeline.config import FetchConfig, ImageConfig
from pipeline.dataset.shard import StoredImage
from pipeline.errors import Failure
from pipeline.fetch import http_client
from pipeline.fetch.http_client import ACCEPT, Fetched, Fetcher
from pipeline.transform.image import prepare_image
from tests.support.raw_server import RawServer, raw_server


def encode(format: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


JPEG, PNG, WEBP, AVIF = encode("JPEG"), encode("PNG"), encode("WEBP"), encode("AVIF")
SIZE = len(JPEG)
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % SIZE
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def chunks(data: bytes, size: int = 300, extension: bytes = b"", line_end: bytes = b"\r\n") -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x" % len(piece) + extension + line_end + piece + line_end for piece in pieces)


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


END = b"0\r\n\r\n"
PACKED = gzip.compress(JPEG)
READ = {
    # ---- heads
    "a header of 9 kB [aiohttp 2304]": OK + b"X: " + b"a" * 9000 + b"\r\n" + LENGTH + b"\r\n" + JPEG,
    "a header of 64 KiB": OK + b"X: " + b"a" * 65536 + b"\r\n" + LENGTH + b"\r\n" + JPEG,
    "64 KiB of headers": OK + b"".join(b"X-%04d: %s\r\n" % (i, b"v" * 55) for i in range(1024)) + LENGTH + b"\r\n" + JPEG,
    "many short headers": OK + b"a:b\r\n" * 12_000 + LENGTH + b"\r\n" + JPEG,
    "a long status line": b"HTTP/1.1 200 " + b"O" * 65_000 + b"\r\n" + LENGTH + b"\r\n" + JPEG,
    "no reason phrase": b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + JPEG,
    "two spaces in the status line [aiohttp 7165]": b"HTTP/1.1  200 OK\r\n" + LENGTH + b"\r\n" + JPEG,
    "a status line in lower case": b"http/1.1 200 ok\r\n" + LENGTH + b"\r\n" + JPEG,
    "an odd version": b"HTTP/1.2 200 OK\r\n" + LENGTH + b"\r\n" + JPEG,
    "an empty line before the status line": b"\r\n" + OK + LENGTH + b"\r\n" + JPEG,
    "mixed line ends [aiohttp 7494]": b"HTTP/1.0 200 OK\nServer: GoAhead\r\nPragma: no-cache\nSet-Cookie: a=1; path=/;\n\n"
    + JPEG,
    "a line without a colon": OK + b"garbage\r\n" + LENGTH + b"\r\n" + JPEG,
    "a space before the colon [aiohttp 262]": OK + b'X-Echo JSON: "curl"\r\nX-A : b\r\n' + LENGTH + b"\r\n" + JPEG,
    "an odd name": OK + b"X@(A)/\xe9: b\r\n: c\r\n" + LENGTH + b"\r\n" + JPEG,
    "a folded header": OK + b"X: a\r\n  b\r\n\tc\r\n" + LENGTH + b"\r\n" + JPEG,
    "bytes that are no text [aiohttp 5269]": OK
    + b"X: \xe9\xff\x00\x01\rz\r\nSet-Cookie: a=\x01b\r\n"
    + LENGTH
    + b"\r\n"
    + JPEG,
    "a broken cookie": OK + b'Set-Cookie: =;;=\xff; path\r\nSet-Cookie: a[b]="c\r\n' + LENGTH + b"\r\n" + JPEG,
    "a wrong type": OK + b'Content-Type: ;;; charset="\r\n' + LENGTH + b"\r\n" + JPEG,
    "an offered upgrade": OK + b"Upgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\n" + LENGTH + b"\r\n" + JPEG,
    "100 before the answer": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + b"\r\n" + JPEG,
    "102 before the answer [aiohttp 2926]": b"HTTP/1.1 102 Processing\r\n\r\n" + OK + LENGTH + b"\r\n" + JPEG,
    "103 before the answer [aiohttp 1353]": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3
    + OK
    + LENGTH
    + b"\r\n"
    + JPEG,
    # ---- where the body ends
    "HTTP/1.0 without a length": b"HTTP/1.0 200 OK\r\n\r\n" + JPEG,
    "no length": OK + b"\r\n" + JPEG,
    "the length twice": OK + LENGTH + LENGTH + b"\r\n" + JPEG,
    "the length as a list [h2o 2673]": OK + b"Content-Length: %d, %d\r\n\r\n" % (SIZE, SIZE) + JPEG,
    "a length that is no number": OK + b"Content-Length: abc\r\n\r\n" + JPEG,
    "a negative length": OK + b"Content-Length: -1\r\n\r\n" + JPEG,
    "an empty length": OK + b"Content-Length:\r\n\r\n" + JPEG,
    "an endless length": OK + b"Content-Length: 99999999999999999999999\r\n\r\n" + JPEG,
    "a length that is too large": OK + b"Content-Length: %d\r\n\r\n" % (SIZE + 10) + JPEG,
    "bytes after the body": OK + LENGTH + b"\r\n" + JPEG + b"trailing",
    "a length beside chunks [node 7136]": OK + CHUNKED + b"Content-Length: 7\r\n\r\n" + chunks(JPEG) + END,
    "an encoding that changes nothing": OK + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + JPEG,
    "chunks": OK + CHUNKED.upper() + b"\r\n" + chunks(JPEG) + END,
    "chunks announced twice": OK + CHUNKED + CHUNKED + b"\r\n" + chunks(JPEG) + END,
    "chunks of HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n" + chunks(JPEG) + END,
    "chunks of one byte": OK + CHUNKED + b"\r\n" + chunks(JPEG, size=1) + END,
    "chunks with extensions": OK + CHUNKED + b"\r\n" + chunks(JPEG, extension=b';a="b"') + END,
    "chunks with spaces": OK + CHUNKED + b"\r\n" + chunks(JPEG, extension=b"   ") + END,
    "chunks with leading zeros": OK + CHUNKED + b"\r\n" + b"0000%X\r\n" % SIZE + JPEG + b"\r\n0000\r\n\r\n",
    "chunks with line feeds": OK + CHUNKED + b"\r\n" + chunks(JPEG, line_end=b"\n") + b"0\n\n",
    "chunks with trailers": OK + CHUNKED + b"\r\n" + chunks(JPEG) + b"0\r\nX: y\r\nZ\r\n\r\n",
    "chunks without an end": OK + CHUNKED + b"\r\n" + chunks(JPEG),
    "bytes after the chunks": OK + CHUNKED + b"\r\n" + chunks(JPEG) + END + b"trailing",
    # ---- compression
    "gzip": OK + b"Content-Encoding: gzip\r\n\r\n" + PACKED,
    "x-gzip": OK + b"Content-Encoding: X-GZIP\r\n\r\n" + PACKED,
    "gzip twice [aiohttp 13364]": OK + b"Content-Encoding: gzip,gzip\r\n\r\n" + gzip.compress(PACKED),
    "gzip labelled twice [aiohttp 13364]": OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + PACKED,
    "gzip in two headers": OK + b"Content-Encoding: gzip\r\nContent-Encoding: deflate\r\n\r\n" + zlib.compress(PACKED),
    "gzip by its label alone": OK + b"Content-Encoding: gzip\r\n\r\n" + JPEG,
    "gzip with a wrong checksum [requests 3849]": OK + b"Content-Encoding: gzip\r\n\r\n" + PACKED[:-8] + b"\0" * 8,
    "gzip without its checksum": OK + b"Content-Encoding: gzip\r\n\r\n" + PACKED[:-8],
    "gzip in members": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(JPEG[:99]) + gzip.compress(JPEG[99:]) + b"junk",
    "deflate": OK + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(JPEG),
    "deflate without its header [aiohttp 1918]": OK + b"Content-Encoding: deflate\r\n\r\n" + raw_deflate(JPEG),
    "deflate by its label alone": OK + b"Content-Encoding: deflate\r\n\r\n" + JPEG,
    "br by its label alone": OK + b"Content-Encoding: br\r\n\r\n" + JPEG,
    "an encoding that is none": OK + b"Content-Encoding: UTF-8\r\n\r\n" + JPEG,
    # ---- statuses
    "203": b"HTTP/1.1 203 Non-Authoritative\r\n" + LENGTH + b"\r\n" + JPEG,
    "206 with everything": b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-%d/%d\r\n" % (SIZE - 1, SIZE) + LENGTH + b"\r\n" + JPEG,
}
REFUSED = {
    "lengths that differ": (OK + LENGTH + b"Content-Length: 7\r\n\r\n" + JPEG, "bad_answer"),
    "a body cut short": (OK + LENGTH + b"\r\n" + JPEG[:-40], "connection_lost"),
    "a body cut short, of a PNG": (OK + b"Content-Length: 9999\r\n\r\n" + PNG[:-9], "connection_lost"),
    "chunks cut short": (OK + CHUNKED + b"\r\n" + chunks(JPEG[:-40]), "connection_lost"),
    "a chunk without its size": (OK + CHUNKED + b"\r\nzz\r\n" + JPEG, "bad_answer"),
    "chunks by their label alone": (OK + CHUNKED + b"\r\n" + JPEG, "bad_answer"),
    "a chunk that is longer than its size": (OK + CHUNKED + b"\r\n" + b"5\r\n" + JPEG, "bad_answer"),
    "gzip cut short": (OK + b"Content-Encoding: gzip\r\n\r\n" + PACKED[: SIZE // 2], "bad_answer"),
    "gzip that is damaged": (OK + b"Content-Encoding: gzip\r\n\r\n" + PACKED[:300] + b"\xff" * 300, "bad_answer"),
    "br, which is not asked for": (OK + b"Content-Encoding: br\r\n\r\n" + b"\x1b\x03compressed", "bad_answer"),
    "a head without end": (OK + b"X: " + b"a" * (300 << 10) + b"\r\n\r\n" + JPEG, "bad_answer"),
    "too many headers": (OK + b"a:b\r\n" * 60_000 + b"\r\n" + JPEG, "bad_answer"),
    "HTTP/0.9": (JPEG, "bad_answer"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "bad_answer"),
    "a status that is none": (b"HTTP/1.1 2000 OK\r\n\r\n", "bad_answer"),
    "nothing": (b"", "connection_lost"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", "connection_lost"),
    "204 [aiohttp 609]": (b"HTTP/1.1 204 No Content\r\nContent-Encoding: gzip\r\n\r\n", "http_204"),
    "a part of an image": (
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/99\r\nContent-Length: 10\r\n\r\n" + JPEG[:10],
        "http_206",
    ),
    "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "http_304"),
    "a redirect to nowhere": (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "http_302"),
    "999": (b"HTTP/1.1 999 Denied\r\nContent-Length: 0\r\n\r\n", "http_999"),
    "an empty body": (OK + b"Content-Encoding: deflate\r\nContent-Length: 0\r\n\r\n", "empty_body"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as site:
        yield site


@pytest.fixture
def site(server: RawServer) -> RawServer:
    server.answers.clear()
    server.requests.clear()
    server.keep_open.clear()
    server.reset.clear()
    return server


def fetch(*urls: str, **options) -> list[Fetched | Failure]:
    """Fetches one after the other with one client."""
    values = {"allow_addresses": ("127.0.0.1/32",), "attempts": 1, "total_timeout_s": 5, "read_timeout_s": 2} | options

    async def all_of_them() -> list[Fetched | Failure]:
        async with Fetcher(FetchConfig(**values)) as fetcher:
            return [await fetcher.fetch(url) for url in urls]

    return asyncio.run(all_of_them())


def reasons(outcomes: list[Fetched | Failure]) -> list[str]:
    return ["success" if isinstance(outcome, Fetched) else outcome.reason for outcome in outcomes]


@pytest.mark.parametrize("name", READ)
def test_what_a_browser_shows_is_read(site, name):
    assert fetch(site.put("/a.jpg", READ[name])) == [Fetched(JPEG)]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_has_a_true_reason(site, name):
    answer, reason = REFUSED[name]
    (outcome,) = fetch(site.put("/a.jpg", answer))
    assert isinstance(outcome, Failure)
    assert outcome.reason == reason
    assert "400" not in outcome.message, "no status that the server never sent"


@pytest.mark.parametrize("connections", ["closed", "kept open"])
def test_no_answer_spoils_the_next_one_of_its_host(site, connections):
    answers = READ | {name: answer for name, (answer, _) in REFUSED.items()}
    urls, good = [], site.put("/good", OK + LENGTH + b"\r\n" + JPEG, keep_open=connections == "kept open")
    for number, answer in enumerate(answers.values()):
        ends = LENGTH in answer or (CHUNKED in answer and END in answer)
        urls += [site.put(f"/{number}", answer, keep_open=ends and connections == "kept open"), good]
    outcomes = fetch(*urls, read_timeout_s=0.2, host_max_failures=1000)
    assert outcomes[1::2] == [Fetched(JPEG)] * len(answers)


def test_an_answer_arrives_in_the_smallest_pieces(site):
    for name in ("103 before the answer [aiohttp 1353]", "chunks with trailers", "bytes after the body", "gzip in members"):
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def serve(listening=listening, answer=READ[name]) -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.recv(1 << 16)
                    for at in range(0, len(answer), 7):
                        connection.send(answer[at : at + 7])

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            assert fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/") == [Fetched(JPEG)], name
            thread.join()


def test_a_broken_body_is_no_evidence_that_the_host_is_down(site):
    cut = OK + LENGTH + b"\r\n" + JPEG[:100]
    urls = [site.put("/cut", cut), site.put("/reset", cut, reset=True), site.put("/chunks", REFUSED["chunks cut short"][0])]
    urls += [site.put("/silent", cut, keep_open=True), site.put("/zipped", REFUSED["gzip cut short"][0])]
    good = site.put("/good", OK + LENGTH + b"\r\n" + JPEG)
    outcomes = fetch(*urls, *urls, good, host_max_failures=2, read_timeout_s=0.2)
    assert reasons(outcomes) == 2 * ["connection_lost", "connection_lost", "connection_lost", "timeout", "bad_answer"] + [
        "success"
    ]


def test_a_host_that_gives_no_answer_is_down_after_a_while(site):
    nothing = site.put("/nothing", b"")
    assert reasons(fetch(*[nothing] * 4, host_max_failures=3)) == ["connection_lost"] * 3 + ["host_down"]


def test_an_answer_that_is_not_http_is_an_answer(site):
    url = site.put("/a", REFUSED["another protocol"][0])
    assert reasons(fetch(*[url] * 4, host_max_failures=2)) == ["bad_answer"] * 4


def test_a_connection_that_the_server_closes_between_requests_is_opened_again(site):
    urls = [site.put(f"/{number}", OK + b"Connection: keep-alive\r\n" + LENGTH + b"\r\n" + JPEG) for number in range(20)]
    assert fetch(*urls) == [Fetched(JPEG)] * 20


def test_a_broken_body_is_asked_for_again(site):
    answers = iter([OK + LENGTH + b"\r\n" + JPEG[:100], OK + LENGTH + b"\r\n" + JPEG])
    assert fetch(site.put("/a", lambda head: next(answers)), attempts=2) == [Fetched(JPEG)]


@pytest.mark.parametrize(
    ("status", "wait"),
    [
        *[(408, "0"), (425, "0"), (429, "0"), (500, "0"), (503, "0.2"), (503, "-3"), (429, "nonsense")],
        *[(503, "date"), (429, "past"), (503, "Fri, 31 Dec 99999 23:59:59 GMT")],
    ],
)
def test_a_busy_server_is_asked_again(site, status, wait, monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_DELAY_S", 0.01)
    dates = {"date": timedelta(seconds=0.3), "past": timedelta(days=-9)}  # ajtag in mloesch/sickle PR 28
    value = format_datetime(datetime.now(UTC) + dates[wait], usegmt=True) if wait in dates else wait
    busy = f"HTTP/1.1 {status} Busy\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n".encode()
    answers = iter([busy, OK + LENGTH + b"\r\n" + JPEG])
    began = time.monotonic()
    assert fetch(site.put("/a", lambda head: next(answers)), attempts=2) == [Fetched(JPEG)]
    assert time.monotonic() - began < 1.5


def test_accept_lists_exactly_what_is_decoded(site):
    fetch(site.put("/a", OK + LENGTH + b"\r\n" + JPEG))
    assert f"\r\nAccept: {ACCEPT}\r\n".encode() in site.requests[0]
    assert "*" not in ACCEPT
    for type in ACCEPT.split(", "):
        data = encode(type.removeprefix("image/").upper())
        assert isinstance(prepare_image(data, ImageConfig()), StoredImage), type


def test_a_server_that_negotiates_sends_what_we_read(site):
    def negotiate(head: bytes) -> bytes:
        body = AVIF if b"image/avif" in head else b"\0\0\0\x0cJXL \r\n\x87\n" if b"*" in head else WEBP
        return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body

    (outcome,) = fetch(site.put("/a", negotiate))
    assert isinstance(outcome, Fetched)
    stored = prepare_image(outcome.body, ImageConfig())
    assert isinstance(stored, StoredImage)
    assert (stored.width, stored.height) == (36, 24)


def test_a_server_that_knows_none_of_our_types_is_asked_for_any(site):
    def strict(head: bytes) -> bytes:  # danielfett/advancedcaching 171
        return OK + LENGTH + b"\r\n" + JPEG if b"Accept: */*\r\n" in head else b"HTTP/1.1 406 No\r\nContent-Length: 0\r\n\r\n"

    assert fetch(site.put("/a", strict)) == [Fetched(JPEG)]
    assert len(site.requests) == 2


def test_a_compressed_bomb_is_refused_at_the_limit(site):
    bomb = gzip.compress(bytes(5_000_000))
    for body, label in ((bomb, b"gzip"), (gzip.compress(bomb), b"gzip, gzip"), (zlib.compress(bytes(5_000_000)), b"deflate")):
        url = site.put("/a", OK + b"Content-Encoding: " + label + b"\r\n\r\n" + body)
        assert reasons(fetch(url, max_bytes=100_000)) == ["too_large"]


@pytest.mark.parametrize(
    ("body", "reason", "says"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "not_an_image", "an HTML page"),  # python-pillow/Pillow 9094
        (b"\xef\xbb\xbf\n <html lang=en>", "not_an_image", "an HTML page"),
        (json.dumps({"error": "gone"}).encode(), "not_an_image", "JSON"),
        (b"<Error><Code>AccessDenied</Code></Error>", "not_an_image", "an XML document"),
        (b"hotlinking is not allowed", "not_an_image", "text, not an image: 'hotlinking is not allowed'"),
        (b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format", "an SVG image"),
        (b'\n<svg viewBox="0 0 1 1">', "unsupported_format", "an SVG image"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "unsupported_format", "a HEIC image"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "unsupported_format", "a HEIC image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "unsupported_format", "a JPEG 2000 image"),
        (b"\xff\x0a" + bytes(30), "unsupported_format", "a JPEG XL image"),
        (b"\0\0\x01\0\x01\0\x10\x10", "unsupported_format", "an ICO image"),
        (b"8BPS\0\x01", "unsupported_format", "a Photoshop (PSD) image"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isomiso2", "not_an_image", "an MP4 or QuickTime film"),
        (b"%PDF-1.7", "not_an_image", "a PDF document"),
        (b"PK\x03\x04", "not_an_image", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1", "not_an_image", "a Git LFS pointer"),
        (PNG[:12], "not_an_image", "a PNG image that is cut short or damaged"),
        (AVIF[:40], "decode", "an AVIF image that is cut short or damaged"),
        (b"RIFF\0\0\0\0WAVE", "not_an_image", "a sound or a film"),
        (bytes(50), "not_an_image", "match no supported image format"),
    ],
)
def test_what_is_no_image_is_named(body, reason, says):
    outcome = prepare_image(body, ImageConfig())
    assert isinstance(outcome, Failure)
    assert (outcome.status, outcome.reason) == ("failed_to_resize", reason)
    assert says in outcome.message


def tls_server(context: ssl.SSLContext, answer: bytes) -> tuple[str, threading.Thread]:
    """Serves one connection, and closes it without TLS's farewell."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening, listening.accept()[0] as plain:
            try:
                connection = context.wrap_socket(plain, server_side=True)
            except OSError:
                return
            connection.recv(1 << 16)
            connection.sendall(answer)
            os.close(connection.detach())  # no close_notify

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"https://127.0.0.1:{listening.getsockname()[1]}/", thread


@pytest.mark.parametrize("ciphers", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-SHA"])
def test_servers_with_old_ciphers_and_an_abrupt_end_are_read(tmp_path, monkeypatch, ciphers):
    from jobs.benchmarks.image_server import certificate

    context = certificate(tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    http_client._tls.cache_clear()
    try:
        url, thread = tls_server(context, b"HTTP/1.0 200 OK\r\n\r\n" + JPEG)
        assert fetch(url) == [Fetched(JPEG)]
        thread.join()
        assert http_client._tls().options & 0x4, "servers without secure renegotiation [requests 6537]"
    finally:
        http_client._tls.cache_clear()

"""fetch(url) gives a body or a reason, whatever the other side does."""

import asyncio
import gzip
import os
import threading
import time

import pytest

from pipeline.config import FetchConfig
from pipeline.errors import Failure
from pipeline.fetch.http_client import Fetched, Fetcher, opt_out

LOOPBACK = ("127.0.0.1/32",)


def fetch(url: str, **options) -> Fetched | Failure:
    values = {"allow_addresses": LOOPBACK, "total_timeout_s": 5, "read_timeout_s": 3} | options

    async def one() -> Fetched | Failure:
        async with Fetcher(FetchConfig(**values)) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(one())


def reason(url: str, **options) -> str:
    outcome = fetch(url, **options)
    assert isinstance(outcome, Failure)
    assert outcome.status == "failed_to_download"
    assert outcome.message
    return outcome.reason


def answer(status: int, body: bytes = b"", **headers: str):
    """A page that answers so."""

    def page(handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return page


def test_a_body_is_fetched_whole_under_an_honest_name(web):
    url = web.put("/a", b"body" * 10_000)
    assert fetch(url, user_agent_contact="https://example.org/bot") == Fetched(b"body" * 10_000)
    agent = web.requests[0][1]["User-Agent"]
    assert agent.startswith("rayclip/")
    assert "https://example.org/bot" in agent


@pytest.mark.parametrize(
    "host",
    [
        *["127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "0x7f000001", "[::1]", "[::]", "[::ffff:127.0.0.1]"],
        *["localhost", "LOCALHOST", "169.254.169.254", "0.0.0.0"],
    ],
)
def test_no_spelling_of_a_private_address_is_reached_by_default(web, host):
    port = web.address.rpartition(":")[2]
    web.put("/secret", b"secret")
    assert reason(f"http://{host}:{port}/secret", allow_addresses=(), total_timeout_s=3) in (
        "address_refused",
        "dns",  # where the resolver itself takes the spelling for no name
        "bad_url",
    )
    assert web.requests == []


@pytest.mark.parametrize(
    "host",
    [
        *["10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "0.1.2.3", "224.0.0.1", "240.0.0.1"],
        *["[fd00:ec2::254]", "[fe80::1]", "[fc00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::ffff:10.0.0.1]"],
    ],
)
def test_addresses_of_private_networks_are_refused_by_the_guard(host):
    assert reason(f"http://{host}/", allow_addresses=()) == "address_refused"


def test_plain_loopback_is_refused_by_the_guard_itself(web):
    assert reason(web.put("/a", b"x"), allow_addresses=()) == "address_refused"


def test_redirects_are_followed_and_guarded_at_every_hop(web):
    target = web.put("/target", b"found")
    assert fetch(web.put("/hop", answer(302, Location=target))) == Fetched(b"found")
    assert fetch(web.put("/relative", answer(301, Location="/target"))) == Fetched(b"found")
    port = web.address.rpartition(":")[2]
    inward = web.put("/inward", answer(302, Location=f"http://127.0.0.2:{port}/target"))
    assert reason(inward) == "address_refused"
    assert reason(web.put("/file", answer(302, Location="file:///etc/passwd"))) == "unknown_scheme"
    assert reason(web.put("/loop", answer(302, Location="/loop"))) == "too_many_redirects"
    assert web.hits("/loop") == FetchConfig().max_redirects + 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///etc/passwd", "unknown_scheme"),
        ("data:image/png;base64,AAAA", "unknown_scheme"),
        ("ftp://example.com/a", "unknown_scheme"),
        ("example.com/a.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://a:99999/", "bad_url"),
        ("http://a b/", "bad_url"),
        ("http://user:password@127.0.0.1\\@example.com/", "bad_url"),
        ("http://user:password@127.0.0.1/", "bad_url"),
        ("http://\x00/", "bad_url"),
    ],
)
def test_what_is_no_web_address_is_a_reason(url, expected):
    assert reason(url) == expected


def test_dead_ends_have_their_reasons(web):
    assert reason("http://127.0.0.1:9/") == "connect"
    assert reason("http://name.invalid/") == "dns"
    assert reason(web.put("/empty", b"")) == "empty_body"
    assert reason(web.address.replace("http", "https") + "/") == "tls"


@pytest.mark.parametrize("status", [404, 410, 403])
def test_a_clear_no_is_asked_once(web, status):
    assert reason(web.put("/no", answer(status))) == f"http_{status}"
    assert web.hits("/no") == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_the_time_it_names(web, status):
    def busy_once(handler) -> None:
        first = web.hits("/busy") == 1
        answer(status, Retry_After="1")(handler) if first else answer(200, b"now")(handler)

    began = time.monotonic()
    assert fetch(web.put("/busy", busy_once)) == Fetched(b"now")
    assert time.monotonic() - began >= 1
    assert web.hits("/busy") == 2


def test_a_server_that_stays_busy_ends_with_its_status(web):
    assert reason(web.put("/busy", answer(503, Retry_After="0"))) == "http_503"
    assert web.hits("/busy") == 3


def test_a_server_in_trouble_is_asked_again_after_growing_pauses(web):
    began = time.monotonic()
    assert reason(web.put("/trouble", answer(500))) == "http_500"
    assert web.hits("/trouble") == 3
    assert 0.7 < time.monotonic() - began < 3, "half to one and a half of 0.5 s, then of 1 s"


def test_what_a_server_says_of_the_type_is_not_asked(web):
    assert fetch(web.put("/a", answer(200, b"picture", Content_Type="text/html"))) == Fetched(b"picture")


def test_a_drip_ends_at_the_deadline(web):
    def drip(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    began = time.monotonic()
    assert reason(web.put("/drip", drip), total_timeout_s=1) == "timeout"
    assert time.monotonic() - began < 2


def test_silence_ends_at_the_read_deadline(web):
    assert reason(web.put("/silent", lambda handler: time.sleep(3)), read_timeout_s=0.3, total_timeout_s=2) == "timeout"


def test_the_byte_cap_holds_with_and_without_a_stated_length_and_after_decompression(web):
    def unstated(handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    bomb = gzip.compress(bytes(5_000_000))
    assert len(bomb) < 10_000
    assert reason(web.put("/stated", b"x" * 20_000), max_bytes=10_000) == "too_large"
    assert reason(web.put("/unstated", unstated), max_bytes=10_000) == "too_large"
    assert reason(web.put("/bomb", answer(200, bomb, Content_Encoding="gzip")), max_bytes=10_000) == "too_large"


def test_a_body_cut_short_is_tried_again_and_then_a_reason(web):
    def cut(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)
        handler.close_connection = True

    assert reason(web.put("/cut", cut)) == "connection_lost"
    assert web.hits("/cut") == 3


def test_an_opt_out_header_is_obeyed_before_the_body(web):
    assert reason(web.put("/no", answer(200, b"picture", X_Robots_Tag="noindex, noai"))) == "robots"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["noai"], "noai"),
        (["all", "NoImageAI"], "noimageai"),
        (["rayclip: noml"], "noml"),
        (["*: noindex"], "noindex"),
        (["otherbot: noai"], None),
        (["nofollow, rayclip: noai"], "noai"),
        (["noindex; noai"], "noindex"),
        (["nofollow noai"], "noai"),
        (["otherbot: nofollow; noai"], None),
        (["otherbot: nofollow, noai, RayCLIP: nofollow , noml"], "noml"),
        (["unavailable_after: 25 Jun 2030, 15:00:00 PST, noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], None),
        (["max-snippet:10, noindex"], "noindex"),
        (["nofollow"], None),
        ([], None),
    ],
)
def test_opt_out_directives_and_their_scope(values, expected):
    assert opt_out(values) == expected


class Rebinding:
    """A resolver that answers differently the second time: with this machine."""

    def __init__(self) -> None:
        self.answers = iter(["192.0.2.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"])

    async def resolve(self, host, port=0, family=0):
        address = next(self.answers)
        return [{"hostname": host, "host": address, "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self):
        pass


def test_a_name_that_resolves_inward_or_rebinds_is_refused_where_the_socket_is_made(web, monkeypatch):
    port = web.address.rpartition(":")[2]
    web.put("/secret", b"secret")
    resolver = Rebinding()
    monkeypatch.setattr("pipeline.fetch.http_client.CachingResolver", lambda: resolver)
    reasons = [reason(f"http://rebinding.example:{port}/secret", allow_addresses=()) for _ in range(2)]
    assert reasons == ["address_refused", "address_refused"]
    assert web.requests == []


@pytest.fixture
def tls_web(tmp_path):
    """A server whose certificate is signed by an authority of its own; (address, the authority's file)."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from jobs.benchmarks.image_server import certificate

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = certificate(tmp_path).wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}", str(tmp_path / "ca.pem")
    server.shutdown()
    server.server_close()


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_web):
    assert reason(tls_web[0]) == "tls"


def test_a_certificate_of_a_trusted_authority_is_accepted(tls_web, monkeypatch):
    import subprocess
    import sys

    address, authority = tls_web
    # in a process of its own: trust is read once
    code = (
        "import asyncio\nfrom pipeline.config import FetchConfig\nfrom pipeline.fetch.http_client import Fetcher\n"
        "async def work():\n"
        "    async with Fetcher(FetchConfig(allow_addresses=('127.0.0.1/32',))) as fetcher:\n"
        f"        return await fetcher.fetch('{address}/')\n"
        "print(asyncio.run(work()))\n"
    )
    environment = os.environ | {"SSL_CERT_FILE": authority}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Fetched(body=b'ok')\n"

"""A proxy in front of an S3 server: delays requests, answers one in `every_503` with 503, truncates one body in `every_cut`, or
refuses writes, to all keys or below a folder.
"""

import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.support.serving import serving

DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class FlakyS3:
    """`requests`, `refused` and `cut` count requests, 503s and truncated bodies."""

    address: str = ""
    requests: int = 0
    refused: int = 0
    cut: int = 0


@contextmanager
def flaky_s3(
    endpoint: str, every_503: int = 10, every_cut: int = 20, delay_s: float = 0.0, read_only: bool = False, below: str = ""
) -> Iterator[FlakyS3]:
    target, state = urlsplit(endpoint), FlakyS3()
    lock, requests, bodies = threading.Lock(), itertools.count(1), itertools.count(1)
    cuts: Counter[tuple[str, str | None]] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(delay_s)
            with lock:
                state.requests = next(requests)
                refuse = state.requests % every_503 == 0
                state.refused += refuse
            if read_only and below in self.path and self.command in ("PUT", "POST", "DELETE"):
                self.answer(403, [("Content-Type", "application/xml")], DENIED)
                return
            if refuse:
                self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
                return
            upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            content = response.read()
            upstream.close()
            hop_by_hop = ("transfer-encoding", "connection")
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in hop_by_hop]
            cut = False
            if self.command == "GET" and len(content) > 100:
                with lock:
                    asked = (self.path, self.headers.get("Range"))
                    cut = next(bodies) % every_cut == 0 and (
                        every_cut == 1 or cuts[asked] < 2
                    )  # a client does not try for ever
                    cuts[asked] += cut
                    state.cut += cut
            self.answer(response.status, headers, content, cut)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

    with serving(Handler) as state.address:
        yield state

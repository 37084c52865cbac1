"""Range reads under addresses signed once: quick where they may be, never in the way where they may not."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest

from pipeline.storage import s3_presigned
from pipeline.storage.address import open_storage
from tests.support.serving import serving


@dataclass
class Watch:
    """`signed` and `presigned` count what came through; `refuse` is the status that presigned requests get."""

    address: str = ""
    signed: int = 0
    presigned: list[str] = field(default_factory=list)
    refuse: int = 0


@contextmanager
def watching(endpoint: str) -> Iterator[Watch]:
    """A proxy in front of the S3 server that tells presigned requests from others."""
    target, watch = urlsplit(endpoint), Watch()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "X-Amz-Signature" in self.path:
                watch.presigned.append(self.path)
                if watch.refuse:
                    self.send_response(watch.refuse)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            else:
                watch.signed += 1
            upstream = http.client.HTTPConnection(target.hostname, target.port)
            upstream.request("GET", self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as watch.address:
        yield watch


@pytest.fixture
def watched(bucket, s3_endpoint, monkeypatch):
    """A storage with one object of ten bytes, and what it asks the server for."""
    open_storage(bucket).write("a", b"0123456789")
    with watching(s3_endpoint) as watch:
        monkeypatch.setenv("AWS_ENDPOINT_URL", watch.address)
        yield open_storage(bucket), watch


def test_many_reads_of_an_object_are_signed_once(watched):
    storage, watch = watched
    assert [storage.read_range("a", start, 2) for start in (0, 4, 8)] == [b"01", b"45", b"89"]
    assert (watch.signed, len(watch.presigned), len(set(watch.presigned))) == (0, 3, 1)
    assert storage.read_range("a", 8, 10) == b"89"
    assert storage.read_range("a", 10, 5) == b""
    with pytest.raises(FileNotFoundError, match="gone"):
        storage.read_range("gone", 0, 1)


@pytest.mark.parametrize("status", [200, 301, 403, 500, 503])
def test_what_a_presigned_read_does_not_get_boto3_does(watched, status):
    storage, watch = watched
    watch.refuse = status
    assert [storage.read_range("a", 2, 3) for _ in range(5)] == [b"234"] * 5
    assert watch.signed == 5
    assert len(watch.presigned) == (s3_presigned.MAX_REFUSALS if status == 403 else 5), "a policy is asked a few times only"


def test_an_address_that_is_refused_once_is_signed_anew(watched, monkeypatch):
    storage, watch = watched
    storage.read_range("a", 0, 1)
    watch.refuse = 403
    storage.read_range("a", 0, 1)
    watch.refuse = 0
    storage.presigned._addresses["a"] = (0.0, "http://127.0.0.1:1/an-address-that-has-run-out")
    monkeypatch.setattr(s3_presigned, "RENEW_S", -1.0)
    assert storage.read_range("a", 0, 1) == b"0"
    assert watch.signed == 1

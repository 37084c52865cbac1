"""An S3 server in memory that treats conditional puts as stores other than S3 have been reported to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.serving import serving

Refusal = tuple[int, str]
"""HTTP status and S3's error code."""
Put = Callable[["OddS3", str, bytes], Refusal | None]
"""A conditional put of (key, content): stores it or not, and returns the refusal, or None for 200."""


@dataclass
class OddS3:
    """The server's state.

    Attributes:
        objects: `/BUCKET/KEY` -> content.
        requests: (method, key) in the order of their arrival.
        put: treats conditional puts.
        denied: (method, part of a key) that are answered with 403.
    """

    put: Put
    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    denied: list[tuple[str, str]] = field(default_factory=list)
    conditional: int = 0

    def of_probe(self) -> list[str]:
        return [method for method, key in self.requests if "_probe" in key]


def keeps(store: OddS3, key: str, content: bytes) -> Refusal | None:
    """S3: one of many puts wins."""
    if key in store.objects:
        return 412, "PreconditionFailed"
    store.objects[key] = content
    return None


def ignores(store: OddS3, key: str, content: bytes) -> Refusal | None:
    """Earlier SeaweedFS, versitygw, Incus, MinIO and Ceph: writes over the object."""
    store.objects[key] = content
    return None


def answers(status: int, code: str) -> Put:
    """Refuses every conditional put: 501 Backblaze B2 and OVH."""
    return lambda store, key, content: (status, code)


def refuses_with(status: int, code: str) -> Put:
    """Keeps the promise with another answer than 412: 409 Azure's emulator, 304 earlier MinIO, 500 moto 5.2.0."""
    return lambda store, key, content: (status, code) if keeps(store, key, content) else None


def writes_all_the_same(store: OddS3, key: str, content: bytes) -> Refusal | None:
    """Says 412 and writes."""
    there, store.objects[key] = key in store.objects, content
    return (412, "PreconditionFailed") if there else None


def eventually(after: int) -> Put:
    """Sees an object only after so many conditional puts of any key."""

    def put(store: OddS3, key: str, content: bytes) -> Refusal | None:
        store.conditional += 1
        return keeps(store, key, content) if store.conditional > after else ignores(store, key, content)

    return put


@contextmanager
def odd_s3(put: Put, server: str = "OddStore/1.0") -> Iterator[OddS3]:
    state = OddS3(put)

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = server, ""

        def do_PUT(self) -> None:
            content = _unchunked(self.rfile.read(int(self.headers["Content-Length"])), self.headers)
            if self._noted():
                return
            if "If-None-Match" in self.headers:
                self._answer(state.put(state, self._key, content))
            else:
                state.objects[self._key] = content
                self._answer(None)

        def do_GET(self) -> None:
            if self._noted():
                return
            query = parse_qs(urlsplit(self.path).query)
            if "uploads" in parse_qs(urlsplit(self.path).query, keep_blank_values=True):
                self._answer(None, b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>")
            elif "list-type" in query:
                self._list(query["prefix"][0] if "prefix" in query else "")
            elif self._key in state.objects:
                self._send(state.objects[self._key])
            else:
                self._answer((404, "NoSuchKey"))

        do_HEAD = do_GET

        def do_DELETE(self) -> None:
            if not self._noted():
                state.objects.pop(self._key, None)
                self._answer(None)

        @property
        def _key(self) -> str:
            return unquote(urlsplit(self.path).path)

        def _noted(self) -> bool:
            """Notes the request; answers it if it is denied."""
            state.requests.append((self.command, self._key))
            denied = any(method == self.command and part in self._key for method, part in state.denied)
            if denied:
                self._answer((403, "AccessDenied"))
            return denied

        def _send(self, content: bytes) -> None:
            if "Range" not in self.headers:
                self._answer(None, content)
                return
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            if first < len(content):
                self._answer((206, ""), content[first : last + 1])
            else:
                self._answer((416, "InvalidRange"))

        def _list(self, prefix: str) -> None:
            start = f"{self._key.rstrip('/')}/"
            keys = sorted(key.removeprefix(start) for key in state.objects if key.startswith(start + prefix))
            items = "".join(
                f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
                f"<Size>{len(state.objects[start + key])}</Size></Contents>"
                for key in keys
            )
            self._answer(None, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode())

        def _answer(self, refusal: Refusal | None, body: bytes = b"") -> None:
            status, code = refusal or (200, "")
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode() if refusal and code else body
            body = b"" if status == 304 else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"tag"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with serving(Handler) as state.address:
        yield state


def _unchunked(body: bytes, headers: object) -> bytes:
    """The content of a body in aws-chunked encoding, which boto3 may use."""
    if "aws-chunked" not in str(headers):
        return body
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if not length:
            break
        content, body = content + body[:length], body[length + 2 :]
    return content

"""A server that answers with exactly the bytes that a test states, and keeps the requests as they came over the wire."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Answer = bytes | Callable[[bytes], bytes]


@dataclass
class RawServer:
    """A server on loopback.

    Attributes:
        answers: request target -> the bytes of the answer, or a function of the request that returns them.
        otherwise: the answer to any other target.
        requests: heads of requests, in the order of their arrival.
        keep_open: targets whose connection stays open after the answer; others are closed.
        reset: targets whose connection is reset after the answer.
    """

    address: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    otherwise: Answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    requests: list[bytes] = field(default_factory=list)
    keep_open: set[str] = field(default_factory=set)
    reset: set[str] = field(default_factory=set)

    def put(self, path: str, answer: Answer, keep_open: bool = False, reset: bool = False) -> str:
        """Returns the URL of the answer."""
        self.answers[path] = answer
        self.keep_open |= {path} if keep_open else set()
        self.reset |= {path} if reset else set()
        return self.address + path

    @property
    def targets(self) -> list[str]:
        """Request targets as they came over the wire."""
        return [_target(request) for request in self.requests]


def _target(head: bytes) -> str:
    """The target of a request, as it came over the wire."""
    return head.split(b"\r\n")[0].split(b" ", 1)[1].rpartition(b" ")[0].decode("latin-1")


@contextmanager
def raw_server() -> Iterator[RawServer]:
    site = RawServer()

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = self.rfile.readline()
                    if not line:
                        return
                    head += line
                site.requests.append(head)
                target = _target(head)
                answer = site.answers.get(target, site.otherwise)
                self.wfile.write(answer(head) if callable(answer) else answer)
                if target in site.reset:
                    self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if target not in site.keep_open:
                    return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """A client may close its connection at any time."""

    with Server(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield site
        finally:
            server.shutdown()

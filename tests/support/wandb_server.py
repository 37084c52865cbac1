"""The part of a W&B server that a run needs to start, log and finish; it keeps all requests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.serving import serving

ENTITY = {"id": "e", "name": "someone"}
ANSWERS = {
    "query Viewer": {"viewer": {"id": "v", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}},
    "query RunResumeStatus": {"model": {"id": "m", "name": "rayclip", "entity": ENTITY, "bucket": None}},
    "mutation UpsertBucket": {
        "upsertBucket": {
            "bucket": {
                "id": "b",
                "name": "run",
                "displayName": "run",
                "project": {"id": "p", "name": "rayclip", "entity": ENTITY},
                "historyLineCount": 0,
            },
            "inserted": True,
        }
    },
}


@dataclass
class WandbServer:
    """`authorizations` holds the headers with the key, `bodies` everything else that was sent."""

    address: str = ""
    authorizations: set[str] = field(default_factory=set)
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    def history(self) -> bytes:
        """All that was sent as the run's log."""
        return b"".join(body for path, body in self.bodies if path.endswith("/file_stream"))


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
            if "Authorization" in self.headers:
                state.authorizations.add(self.headers["Authorization"])
            state.bodies += [(f"{self.path}, headers", json.dumps(headers).encode()), (self.path, body)]
            data = next((answer for name, answer in ANSWERS.items() if name.encode() in body), None)
            if self.path == "/graphql":
                answer = {"data": data} if data else {"errors": [{"message": "is not known here"}]}
            else:
                answer = {}
            content = json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # telemetry does not wait for the answer
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer

    with serving(Handler) as state.address:
        yield state

"""A stub of W&B's server: what wandb's own process needs to start, log, resume and finish a run. It keeps all requests.

In: requests for /graphql and for a run's file stream, as wandb 0.31 sends them. Out: `WandbServer`, with each run as a server
shows it. `WandbServer.fault` makes it fail: it answers with an error, answers slowly, or cuts the connection.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.serving import serving

ENTITY = {"id": "e", "name": "someone"}
VIEWER = {"id": "v", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
HISTORY, EVENTS, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"


@dataclass
class Run:
    """A run as the server shows it.

    Attributes:
        name, settings: variables of the requests that created and changed it.
        lines: file -> the lines that were sent, by their number.
        starts: how many clients have opened it.
        logged, uses: ids of artifacts.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    starts: int = 0
    logged: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)

    def rows(self) -> list[dict[str, Any]]:
        """The logged rows, each with its `_step`, in the order of their lines."""
        lines = self.lines.get(HISTORY, {})
        assert sorted(lines) == list(range(len(lines))), "a line is missing"
        return [json.loads(lines[number]) for number in sorted(lines)]

    def summary(self) -> dict[str, Any]:
        """The values of the whole run."""
        lines = self.lines.get(SUMMARY, {})
        return json.loads(lines[max(lines)]) if lines else {}

    def as_bucket(self) -> dict[str, Any]:
        """The run as GraphQL has it."""
        history, events = (self.lines.get(name, {}) for name in (HISTORY, EVENTS))
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "displayName": self.settings.get("displayName") or self.name,
            "project": {"id": "p", "name": self.settings.get("project"), "entity": ENTITY},
            "config": self.settings.get("config") or "{}",
            "wandbConfig": '{"t": 1}',
            "summaryMetrics": json.dumps(self.summary()),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": len(self.lines.get(OUTPUT, {})),
            "historyTail": json.dumps([history[max(history)]] if history else []),
            "eventsTail": json.dumps([events[max(events)]] if events else []),
            "tags": self.settings.get("tags") or [],
            "notes": None,
        }


@dataclass
class WandbServer:
    """State of the server.

    Attributes:
        authorizations: the headers with the key.
        artifacts: by id, as they were made.
        bodies: everything else that was sent, by path.
        fault: called with a request's path; an answer's status, 0 for a cut connection, or None for none. It may sleep.
    """

    address: str = ""
    authorizations: set[str] = field(default_factory=set)
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    fault: Callable[[str], int | None] = lambda path: None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _asked_to_resume: set[str] = field(default_factory=set)

    def history(self) -> bytes:
        """All that was sent as the run's log."""
        return b"".join(body for path, body in self.bodies if path.endswith("/file_stream"))

    def await_step(self, name: str, step: int, timeout_s: float = 180.0) -> Run:
        """Waits until a run has a row of a step, or of a later one."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self.lock:
                run = self.runs.get(name)
                if run is not None and any(row["_step"] >= step for row in run.rows()):
                    return run
            time.sleep(0.05)
        raise AssertionError(f"no row of step {step} within {timeout_s:g} s")

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data that answers a GraphQL request; None if it is not known here."""
        run = self.runs.get(str(variables.get("name")))
        if "query Viewer" in text:
            return {"viewer": VIEWER}
        if "query RunResumeStatus" in text:
            self._asked_to_resume.add(variables["name"])
            bucket = run.as_bucket() if run is not None else None
            return {"model": {"id": "m", "name": "rayclip", "entity": ENTITY, "bucket": bucket}}
        if "mutation UpsertBucket" in text:
            inserted = run is None
            if variables.get("displayName") and variables["name"] not in self._asked_to_resume:
                self.runs.pop(variables["name"], None)  # as the real one does: github.com/wandb/wandb/issues/5865
            self._asked_to_resume.discard(variables["name"])
            run = self.runs.setdefault(variables["name"], Run(variables["name"]))
            run.starts += bool(variables.get("displayName"))
            run.settings |= {name: value for name, value in variables.items() if value is not None}
            return {"upsertBucket": {"bucket": run.as_bucket(), "inserted": inserted}}
        if "query OrganizationCoreWeave" in text:
            return {"entity": {"organization": None}}
        if "mutation CreateRunFiles" in text:
            files = [{"name": name, "uploadUrl": f"{self.address}/files/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": f"id-{variables['run']}", "uploadHeaders": [], "files": files}}
        if "mutation CreateArtifact " in text:
            return {"createArtifact": {"artifact": self._artifact(variables["input"])}}
        if "mutation UseArtifact" in text:
            asked = variables["input"] if "input" in variables else variables
            self.runs[asked["runName"]].uses.add(asked["artifactID"])
            return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}
        if "query ServerFeatures" in text:
            return {"serverInfo": {"features": []}}
        if "query ArtifactType(" in text:
            return {"project": {"artifact": None}}
        return None

    def _artifact(self, made: dict[str, Any]) -> dict[str, Any]:
        """The artifact of a digest, as GraphQL has it; the same one for the same digest."""
        name = f"{made['artifactCollectionName']}:{made['digest']}"
        self.artifacts.setdefault(name, made)
        if made["runName"]:
            self.runs[made["runName"]].logged.add(name)
        return {"id": name, "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": name}}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Takes lines of a run's files."""
        run = self.runs[name]
        for file, part in (body.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            lines.update(enumerate(part["content"], part["offset"]))


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = state.fault(self.path)
            if fault == 0:
                self.close_connection = True
                return
            with state.lock:
                status, answer = (fault, {}) if fault else (200, self.take(body))
            content = json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # telemetry does not wait for the answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def take(self, body: bytes) -> dict[str, Any]:
            headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
            if "Authorization" in self.headers:
                state.authorizations.add(self.headers["Authorization"])
            state.bodies += [(f"{self.path}, headers", json.dumps(headers).encode()), (self.path, body)]
            if self.path == "/graphql":
                asked = json.loads(body)
                data = state.query(asked["query"], asked.get("variables") or {})
                return {"data": data} if data else {"errors": [{"message": "is not known here"}]}
            if self.path.endswith("/file_stream"):
                state.stream(self.path.split("/")[-2], json.loads(body))
            return {}

        do_GET = do_POST = do_PUT = answer

    with serving(Handler) as state.address:
        yield state

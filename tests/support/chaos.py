"""Ingestion under fire: a job, one of its workers or the S3 server is killed at seeded moments, until a run succeeds.

Meanwhile a watcher reads all visible objects: every tar must match the hash in its name, every manifest must be complete.
"""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.manifest import list_versions, read_manifest, read_sidecar
from pipeline.errors import StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.versions.audit import verify
from tests.conftest import WebServer, draw

ROOT = Path(__file__).parents[2]
VICTIMS = ("job", "worker", "server")


class PersistentS3:
    """An S3 server that keeps its objects on disk, so that it survives SIGKILL."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.address = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port), "SERVICES": "s3"}
        settings |= {"S3_PERSIST": "1", "S3_DATA_DIR": str(self.folder), "LOG_LEVEL": "ERROR"}
        command = [str(Path(sys.prefix) / "ministack" / "bin" / "ministack")]
        # its own process group: the server starts child processes, and all must die with it
        self.process = subprocess.Popen(
            command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.time() + 60
        while time.time() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("the S3 server did not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Watcher:
    """Reads the visible objects again and again, and records the torn ones."""

    storage: Storage
    torn: list[str] = field(default_factory=list)
    num_checks: int = 0
    _seen: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watcher":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            try:
                self.check()
            except (StorageError, FileNotFoundError):
                continue  # the server has just been killed, or the object was removed

    def check(self) -> None:
        self.num_checks += 1
        for item in self.storage.list("shards/"):
            if item.path.endswith(".tar") and item.path not in self._seen:
                digest = hashlib.sha256(self.storage.read(item.path)).hexdigest()
                if digest[:12] != item.path.split("-")[2]:
                    self.torn.append(item.path)
                self._seen.add(item.path)
        for item in (*self.storage.list("manifests/"), *self.storage.list("partitions/")):
            try:
                json.loads(self.storage.read(item.path))
            except ValueError:
                self.torn.append(item.path)


@dataclass
class Chaos:
    """One data set that is written under fire.

    Attributes:
        command: the job's command line.
        killed: victims so far.
        session: session folder of the Ray that the job joins; only its workers are killed.
    """

    command: list[str]
    environment: dict[str, str]
    server: PersistentS3
    session: str
    killed: Counter[str] = field(default_factory=Counter)

    def run(self, victims: Iterable[str], rng: random.Random, longest_s: float) -> None:
        """Run the job repeatedly and kill one victim after another while it runs; the last run is undisturbed."""
        left, job = deque(victims), self._start()
        while left:
            if job.poll() is not None:
                if job.returncode == 0:
                    break  # it succeeded in spite of the kills
                job = self._start()
            if self._kill(left[0], job, rng.uniform(0.3, longest_s)):
                left.popleft()
        self._wait(job)
        output = self._wait(self._start(), must_succeed=True)
        assert "Traceback" not in output

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )

    def _wait(self, job: "subprocess.Popen[str]", must_succeed: bool = False) -> str:
        output, _ = job.communicate(timeout=180)
        if must_succeed:
            assert job.returncode == 0, f"the job fails although nothing was killed:\n{output}"
        return output

    def _kill(self, victim: str, job: "subprocess.Popen[str]", after_s: float) -> bool:
        """Kill the victim; return False if it was not running."""
        while victim == "worker" and not self._workers() and job.poll() is None:
            time.sleep(0.1)
        time.sleep(after_s)
        workers = self._workers()
        if job.poll() is not None or (victim == "worker" and not workers):
            return False
        if victim == "job":
            job.kill()
            job.communicate()
        elif victim == "server":
            self.server.kill()
            time.sleep(0.5)
            self.server.start()
        else:
            os.kill(workers[0], signal.SIGKILL)
        self.killed[victim] += 1
        return True

    def _workers(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
                raylet = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                ours = self.session.encode() in (Path("/proc") / raylet / "cmdline").read_bytes()
            except OSError:
                continue
            if ours and title.startswith(b"ray::") and b"MapWorker" in title:
                found.append(int(folder.name))
        return found


def write_table(
    path: Path, web: WebServer, num_rows: int, slow_s: float = 0.0, may_hurry: threading.Event | None = None
) -> str:
    """Write a table with one dead URL in ten rows; the other images are served slowly, until `may_hurry` is set."""
    hurry = may_hurry or threading.Event()

    def page(image: bytes) -> Callable[[Any], None]:
        def answer(handler: Any) -> None:
            hurry.wait(slow_s)
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(image)))
            handler.end_headers()
            handler.wfile.write(image)

        return answer

    pages, rows = [page(draw("red", "disc", number)) for number in range(8)], []
    for number in range(num_rows):
        url = f"{web.address}/gone/{number}" if number % 10 == 5 else web.put(f"/{number}.png", pages[number % 8])
        rows.append({"url": url, "caption": f"picture {number}", "n": number})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def check_data_set(uri: str, num_rows: int) -> None:
    """Check that the data set has each row of the table once, and that every object matches the manifest."""
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    rows = [row for shard in manifest.shards for row in read_sidecar(storage, shard, ["n", "key"]).to_pylist()]
    assert sorted(row["n"] for row in rows) == list(range(num_rows)), "each row once"
    assert len({row["key"] for row in rows}) == num_rows
    for version in list_versions(storage):
        assert verify(storage, read_manifest(storage, version)) == []

"""A real Ray cluster on this machine: a head without CPUs, and nodes that can be added, killed and drained."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conftest import free_port
from training.record.tracking import read_metrics

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
START_ATTEMPTS = 4


class MiniCluster:
    """A cluster whose nodes each are one process group, as `ray start --block` makes it."""

    def __init__(self, settings: dict[str, str]) -> None:
        """`settings`: environment of the head and of everything that joins it."""
        self.folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # paths of sockets must be short
        self.address = f"127.0.0.1:{free_port_outside_rays_own()}"
        self.environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | settings | {
            "RAY_TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            # By default each driver makes every node start a worker per CPU, which our jobs' runtime environment cannot use.
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
        }  # fmt: skip
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._join(1, "--head", *self._head_options(), environment=self._head_environment())

    def add_node(self, cpus: int = 1, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a node and wait until it has joined."""
        before = len(self.node_ids())
        # The nodes share a log folder, which the head's log monitor reads: one per node would print every line as often.
        options = (f"--address={self.address}", f"--num-cpus={cpus}", "--include-log-monitor=false")
        return self._join(before + 1, *options, environment=environment)

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill all processes of a node at once, as when its machine fails."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        self.nodes.remove(node)

    def node_ids(self) -> list[str]:
        """Ids of the nodes that the cluster takes to be alive, the head's first."""
        alive = [node for node in self.all_nodes() if node["Alive"]]  # in arbitrary order
        return [node["NodeID"] for node in sorted(alive, key=lambda node: "node:__internal_head__" not in node["Resources"])]

    def all_nodes(self) -> list[dict[str, Any]]:
        """The cluster's node table, which includes dead nodes."""
        from ray._private.state import GlobalState
        from ray._raylet import GcsClientOptions

        state = GlobalState()
        options = GcsClientOptions.create(self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True)
        state._initialize_global_state(options)
        return list(state.node_table())

    def _join(self, count: int, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a node until it is one of so many: on a busy machine, Ray gives a start up after some seconds and ends."""
        for _ in range(START_ATTEMPTS):
            node = self._start(*options, environment=environment)
            while node.poll() is None:
                with contextlib.suppress(Exception):  # the head does not answer yet
                    if len(self.node_ids()) >= count:
                        return node
                time.sleep(0.1)
            self.kill(node)
        log = (self.folder / "nodes.log").read_text()[-3000:]
        self.close()
        raise RuntimeError(f"a node did not start:\n{log}")

    def drain(self, node_id: str, seconds: int) -> None:
        """Announce that a node will be preempted, as a cloud does."""
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
        command = [str(RAY), "drain-node", "--address", self.address, "--node-id", node_id, *reason]
        subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], env=self.environment, check=True)

    def train(self, *settings: str, log: Path) -> subprocess.Popen[bytes]:
        return self.job("jobs/train.py", "--config", "debug_cpu", *settings, log=log)

    def job(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start one of our jobs as a driver on the head's machine; its output goes to `log`."""
        command = [sys.executable, *arguments]
        environment = self.environment | {"RAY_ADDRESS": self.address}
        with log.open("ab") as file:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def workers(self, kind: str = "RayTrainWorker") -> list[int]:
        """Process ids of this cluster's workers of one kind, by default Ray Train's."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title, parent = (folder / "cmdline").read_bytes(), (folder / "stat").read_text().rpartition(")")[2].split()[1]
                ours = str(self.folder).encode() in (Path("/proc") / parent / "cmdline").read_bytes()
            except OSError:
                continue
            if ours and title.startswith(f"ray::{kind}".encode()):
                found.append(int(folder.name))
        return sorted(found)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the workers (SIGSTOP) for the duration of the block."""
        workers = self.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        yield
        for worker in workers:
            os.kill(worker, signal.SIGCONT)

    def close(self) -> None:
        for node in list(self.nodes):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _head_options(self) -> list[str]:
        port = self.address.rpartition(":")[2]
        return [f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}"]

    def _head_environment(self) -> dict[str, str]:
        return {}

    def _start(self, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / "nodes.log").open("ab") as file:
            node = subprocess.Popen(
                [str(RAY), "start", "--block", "--disable-usage-stats", *options],
                env=self.environment | (environment or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        return node


def free_port_outside_rays_own() -> int:
    """A free port above 10002 to 19999, the range of Ray's workers."""
    while True:
        port = free_port()
        if port > 20_000:
            return port


def wait_for_step(metrics: Path, step: int, driver: subprocess.Popen[bytes], log: Path, timeout_s: float = 120.0) -> None:
    """Wait until the run's record contains the step."""
    wait_until(lambda: any(row["step"] >= step for row in read_metrics(metrics)), driver, log, timeout_s)


def wait_until(seen: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path, timeout_s: float = 120.0) -> None:
    deadline = time.time() + timeout_s
    while not seen():
        assert driver.poll() is None, log.read_text()
        assert time.time() < deadline, log.read_text()
        time.sleep(0.005)

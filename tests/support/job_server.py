"""A Ray cluster of one head with token authentication, and the commands that a user types to submit jobs to it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.support.cluster import free_port_outside_rays_own

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)
RAY = str(PYTHON.parent / "ray")
TOKEN = "the-token-of-this-test"


def environment(**more: str) -> dict[str, str]:
    """The caller's environment with the interpreter's folder first on the PATH, as the docs tell users to set it."""
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    held = {
        name: value
        for name, value in os.environ.items()
        if name not in ("AWS_ENDPOINT_URL", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    }
    return held | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} | more


class JobServer:
    """`ray start --head` in a project's folder."""

    def __init__(self, project: Path, **settings: str) -> None:
        """`settings`: environment of the head, which its jobs inherit."""
        self.project = project
        # The agent's default port may be in use by another Ray.
        head_port, self.port, agent_port = (free_port_outside_rays_own() for _ in range(3))
        self.address = f"http://127.0.0.1:{self.port}"
        # Paths of sockets must be short.
        self._temporary = Path(f"/tmp/ray-test-{os.getpid()}")
        command = [RAY, "start", "--head", "--block", f"--port={head_port}", f"--dashboard-port={self.port}"]
        command += [f"--dashboard-agent-listen-port={agent_port}"]
        command += ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={self._temporary}", "--disable-usage-stats"]
        settings |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}  # by default a head drains for 30 s
        settings |= {"RAY_JOB_STOP_WAIT_TIME_S": "120"}  # as the docs say
        # our jobs here need one worker
        settings |= {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
        log = (project / "ray.log").open("w")
        self._head = subprocess.Popen(command, cwd=project, env=environment(**settings), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > deadline:
                raise RuntimeError((project / "ray.log").read_text())
            time.sleep(0.1)

    def job(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job COMMAND`, typed in the project's folder."""
        return self.run([RAY, "job", command, "--address", self.address, *arguments])

    def submit(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`ray job submit OPTIONS -- python ARGUMENTS`."""
        return self.job("submit", *options, "--", "python", *arguments)

    def submit_py(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`python jobs/submit.py ARGUMENTS`. `more`: additional environment."""
        return self.run([str(PYTHON), str(ROOT / "jobs" / "submit.py"), "--address", self.address, *arguments], **more)

    def run(self, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.project, env=environment(**more), capture_output=True, text=True, check=False, timeout=200
        )

    def close(self) -> None:
        self._head.terminate()
        try:
            self._head.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self._head.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.address}/api/version", timeout=5).close()
        except HTTPError:  # it asks for the token
            return True
        except (URLError, OSError):
            return False
        return True


class Connection:
    """A TCP proxy in front of a server that can be cut, as a network is."""

    def __init__(self, port: int) -> None:
        self._port, self._is_cut, self._sockets = port, False, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Close all connections, and refuse new ones for the duration of the block."""
        self._is_cut = True
        for one in self._sockets:
            _shut(one)
        self._sockets.clear()
        yield
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self._is_cut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut(target)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)

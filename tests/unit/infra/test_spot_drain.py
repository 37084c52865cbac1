"""The agent of EC2 spot nodes, as a process, before a server that answers as the instance metadata service does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.serving import serving

AGENT = Path(__file__).parents[3] / "infra" / "aws" / "spot_drain.py"
NODE_ID, GCS = "5b1f9a" * 9 + "5b", "10.0.0.7:6379"
RECORDER = """#!/bin/sh
echo "$@" >> {folder}/commands
test "$(wc -l < {folder}/commands)" -gt {refusals}
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="EC2 nodes run Linux: the agent reads /proc")


@dataclass
class MetadataService:
    """IMDSv2: a token for a PUT, and nothing without one."""

    address: str = ""
    notice: bytes | None = None
    valid: set[str] = field(default_factory=set)
    tokens_given: int = 0
    asked: int = 0
    broken: bool = False

    def wait_for_questions(self, number: int) -> None:
        wait_until(lambda: self.asked >= number)


def wait_until(happened: Callable[[], bool], patience_s: float = 30) -> None:
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def service() -> Iterator[MetadataService]:
    state = MetadataService()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            fine = self.path == "/latest/api/token" and 1 <= int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
            state.tokens_given += 1
            token = f"token-{state.tokens_given}"
            state.valid.add(token)
            self.answer(200 if fine else 400, token.encode())

        def do_GET(self) -> None:
            state.asked += 1
            if state.broken:
                self.answer(500, b"")
            elif self.headers["X-aws-ec2-metadata-token"] not in state.valid:
                self.answer(401, b"")
            elif self.path != "/latest/meta-data/spot/instance-action" or state.notice is None:
                self.answer(404, b"")
            else:
                self.answer(200, state.notice)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as state.address:
        yield state


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[None]:
    """A process that /proc shows as Ray's raylet, with the options by which the agent knows it."""
    script = "import time; time.sleep(120)"
    arguments = [
        str(tmp_path / "raylet"),
        "-c",
        script,
        f"--node_id={NODE_ID}",
        "--node_ip_address=10.0.0.9",
        f"--gcs-address={GCS}",
    ]
    process = subprocess.Popen(arguments, executable=sys.executable)
    yield
    process.kill()
    process.wait()


@pytest.fixture
def start_agent(tmp_path: Path, service: MetadataService) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = []

    def start(refusals: int = 0) -> subprocess.Popen[str]:
        recorder = tmp_path / "ray"
        recorder.write_text(RECORDER.format(folder=tmp_path, refusals=refusals))
        recorder.chmod(0o755)
        options = ["--metadata", service.address, "--address", GCS, "--every-s", "0.05", "--ray", str(recorder)]
        proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # not for a link-local address
        process = subprocess.Popen(
            [sys.executable, str(AGENT), *options], stdout=subprocess.PIPE, text=True, env={**os.environ, **proxies}
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def recorded(folder: Path) -> list[str]:
    return (folder / "commands").read_text().splitlines() if (folder / "commands").exists() else []


def announce(service: MetadataService, in_s: float, action: str = "terminate") -> None:
    when = (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    service.notice = json.dumps({"action": action, "time": when}).encode()


def test_a_notice_drains_this_node_once_with_the_time_that_is_left(service, raylet, start_agent, tmp_path):
    agent = start_agent()
    service.wait_for_questions(3)
    assert recorded(tmp_path) == []
    announce(service, in_s=120)
    assert agent.wait(30) == 0
    (command,) = recorded(tmp_path)
    words = command.split()
    assert words[:5] == ["drain-node", "--address", GCS, "--node-id", NODE_ID]
    assert words[5:7] == ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert "EC2 will terminate this spot instance" in command
    assert words[-2] == "--deadline-remaining-seconds"
    assert 90 <= int(words[-1]) <= 115
    assert service.tokens_given == 1


def test_a_token_that_expired_is_renewed(service, raylet, start_agent, tmp_path):
    agent = start_agent()
    service.wait_for_questions(2)
    service.valid.clear()
    announce(service, in_s=60, action="stop")
    assert agent.wait(30) == 0
    assert service.tokens_given == 2
    assert len(recorded(tmp_path)) == 1


def test_a_service_that_fails_for_a_while_does_not_end_the_watch(service, raylet, start_agent, tmp_path):
    service.broken = True
    agent = start_agent()
    service.wait_for_questions(3)
    assert agent.poll() is None
    service.notice, service.broken = b"<html>no notice</html>", False
    service.wait_for_questions(service.asked + 3)
    assert agent.poll() is None
    announce(service, in_s=60)
    assert agent.wait(30) == 0
    assert len(recorded(tmp_path)) == 1


def test_a_drain_that_ray_refuses_is_tried_again_and_said(service, raylet, start_agent, tmp_path):
    announce(service, in_s=-30)
    agent = start_agent(refusals=2)
    assert agent.wait(30) == 0
    assert len(recorded(tmp_path)) == 3
    assert recorded(tmp_path)[0].endswith("--deadline-remaining-seconds 1")
    assert agent.stdout.read().count("not drained: exit code 1") == 2


def test_nodes_of_other_clusters_are_left_alone_and_a_missing_one_is_waited_for(service, start_agent, tmp_path, request):
    announce(service, in_s=60)
    agent = start_agent()
    service.wait_for_questions(4)
    assert recorded(tmp_path) == []
    assert agent.poll() is None
    request.getfixturevalue("raylet")
    assert agent.wait(30) == 0
    assert len(recorded(tmp_path)) == 1

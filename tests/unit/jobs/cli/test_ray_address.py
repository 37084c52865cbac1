"""An address where no Ray head answers is refused within seconds."""

import contextlib
import socket
import threading
import time

import pytest

from jobs.cli import ray_address
from jobs.cli.ray_address import refuse_a_cluster_that_is_gone
from pipeline.errors import ConfigError
from tests.conftest import free_port
from training.errors import RunError


@contextlib.contextmanager
def server(answer: bytes | None):
    """Answers each connection with some bytes; None: with silence, as a head that hangs."""
    held = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                held.append(connection)
                if answer is not None:
                    connection.recv(64)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        for connection in held:
            connection.close()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(ray_address, "TRIED_FOR_S", 0.6)
    monkeypatch.setattr(ray_address, "EACH_S", 0.3)


def test_a_cluster_that_is_gone_is_refused(monkeypatch):
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(RunError) as refusal:
        refuse_a_cluster_that_is_gone()
    assert time.monotonic() - began < 60, "Ray itself tries for seven minutes"
    assert str(refusal.value) == (
        f"RAY_ADDRESS=127.0.0.1:{port}: no Ray head answers there (Connection refused); start the cluster, set RAY_ADDRESS to "
        "its head, or unset it"
    )


@pytest.mark.parametrize(
    ("answer", "why"),
    [(None, "no answer within 0 s"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers is no Ray head")],
    ids=["a head that hangs", "another server"],
)
def test_what_is_no_head_is_refused(monkeypatch, answer, why):
    with server(answer) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(RunError, match=why):
            refuse_a_cluster_that_is_gone()


def test_a_head_that_answers_is_joined_also_by_ray_s_client(monkeypatch):
    with server(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as port:  # SETTINGS, as each gRPC server sends them
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            refuse_a_cluster_that_is_gone()


@pytest.mark.parametrize("address", ["nonsense", "head:port", "6379"])
def test_what_is_no_address_is_bad_input(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={address}: is not the address of a Ray head; write HOST:PORT"):
        refuse_a_cluster_that_is_gone()


def test_a_cluster_that_ray_start_has_left_behind_is_refused_by_its_own_name(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    port = free_port()
    monkeypatch.setattr(ray_address, "address_to_join", lambda: ("127.0.0.1", port))
    with pytest.raises(RunError, match=f"^the Ray cluster of this machine \\(127.0.0.1:{port}\\): .*`ray stop`"):
        refuse_a_cluster_that_is_gone()


def test_a_ray_of_our_own_is_not_looked_for(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    refuse_a_cluster_that_is_gone()

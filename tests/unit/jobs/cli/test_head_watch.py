"""A head that does not respond is noticed before Ray's own library ends the process."""

import socket
import threading

from jobs.cli import head_watch
from jobs.cli.head_watch import RAYS_PATIENCE_S, VARIABLE, give_up_after_s, watch_head


def test_the_head_is_given_up_before_ray_does(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert give_up_after_s() < RAYS_PATIENCE_S
    monkeypatch.setenv(VARIABLE, "10")
    assert give_up_after_s() == 7.5


def test_a_head_that_listens_is_there_and_one_that_is_gone_is_told_once(monkeypatch):
    monkeypatch.setattr(head_watch, "EVERY_S", 0.02)
    told, stopped = [], threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    watch = threading.Thread(target=watch_head, args=(f"127.0.0.1:{port}", told.append, stopped, 0.2), daemon=True)
    watch.start()
    watch.join(0.6)
    assert (watch.is_alive(), told) == (True, [])
    listener.close()
    watch.join(10)
    assert len(told) == 1
    assert told[0] > 0.2
    stopped.set()

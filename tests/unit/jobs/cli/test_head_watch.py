"""A head that does not respond is noticed before Ray's own library ends the process."""

import socket
import threading

from jobs.cli import head_watch
from jobs.cli.head_watch import RAYS_PATIENCE_S, VARIABLE, HeadWatch, give_up_after_s


def test_the_head_is_given_up_before_ray_does(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert give_up_after_s() < RAYS_PATIENCE_S
    monkeypatch.setenv(VARIABLE, "10")
    assert give_up_after_s() == 7.5


def test_a_head_that_listens_is_there_and_one_that_is_gone_is_told(monkeypatch):
    monkeypatch.setattr(head_watch, "EVERY_S", 0.02)
    monkeypatch.setattr(head_watch, "give_up_after_s", lambda: 0.2)
    silent, told, watch = [], threading.Event(), HeadWatch()
    listener = socket.create_server(("127.0.0.1", 0))
    assert not watch.is_gone(), "it has not joined any cluster"
    watch.start(f"127.0.0.1:{listener.getsockname()[1]}", lambda seconds: (silent.append(seconds), told.set()))
    assert not told.wait(0.6)
    assert not watch.is_gone()
    listener.close()
    assert told.wait(10)
    assert watch.is_gone()
    assert silent[0] > 0.2

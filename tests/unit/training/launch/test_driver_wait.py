"""The driver says what a launch waits for, and ends on request where there is nothing to save."""

import concurrent.futures
import signal
import threading
import time

import pytest

from training.launch import driver_wait
from training.launch.driver_wait import in_a_thread, wait_for
from training.launch.mailbox import Mailbox
from training.stop_signals import StoppedError


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(driver_wait, "LOOKS_EVERY_S", 0.02)
    monkeypatch.setattr(driver_wait, "SAYS_EVERY_S", 0.2)


@pytest.fixture
def mailbox():
    store = {}
    return Mailbox("one", store.__setitem__, lambda key: store.get(key, ""))


def later(act, after_s=0.1):
    threading.Timer(after_s, act).start()


def test_a_result_and_an_error_are_those_of_the_launch(mailbox):
    assert wait_for(in_a_thread(lambda: 5), mailbox, str, saves=True) == 5

    def fail():
        raise TimeoutError("of the launch itself")

    with pytest.raises(TimeoutError, match="of the launch itself"):
        wait_for(in_a_thread(fail), mailbox, str, saves=True)


def test_waiting_for_workers_is_said_again_and_again_until_they_have_started(mailbox, capsys):
    result: concurrent.futures.Future[int] = concurrent.futures.Future()
    mailbox.put("waits", "yes")
    later(lambda: mailbox.put("waits", ""), 0.7)
    later(lambda: result.set_result(1), 1.3)
    assert wait_for(result, mailbox, lambda: "two nodes", saves=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 3
    assert set(lines) <= {f"waiting for workers for {seconds} s: two nodes" for seconds in (0, 1)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_while_no_worker_trains_it_ends(mailbox, number):
    began = time.monotonic()
    later(lambda: signal.pthread_kill(threading.main_thread().ident, number))
    with pytest.raises(StoppedError):
        wait_for(concurrent.futures.Future(), mailbox, str, saves=True)
    assert time.monotonic() - began < 5
    assert mailbox.get("stop") == "yes"


def test_asked_to_stop_while_workers_train_it_waits_until_they_have_saved(mailbox):
    result: concurrent.futures.Future[str] = concurrent.futures.Future()
    mailbox.put("trains", "yes")
    later(lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM))
    later(lambda: result.set_result("saved"), 0.5)
    assert wait_for(result, mailbox, str, saves=True) == "saved"
    assert mailbox.get("stop") == "yes"


def test_a_group_that_is_lost_after_the_request_is_not_waited_for(mailbox):
    mailbox.put("trains", "yes")
    later(lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM))
    later(lambda: mailbox.put("trains", ""), 0.3)
    with pytest.raises(StoppedError):
        wait_for(concurrent.futures.Future(), mailbox, str, saves=True)


def test_a_cluster_that_does_not_answer_is_no_reason_to_end(capsys):
    def away(_key):
        raise ConnectionError

    result: concurrent.futures.Future[int] = concurrent.futures.Future()
    later(lambda: result.set_result(1), 0.3)
    assert wait_for(result, Mailbox("one", lambda *_: None, away), str, saves=True) == 1
    assert capsys.readouterr().out == ""

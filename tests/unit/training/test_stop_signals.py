"""SIGINT and SIGTERM as a request to save: heard once, and a second one is obeyed as before."""

import signal
import threading

import pytest

from training import stop_signals
from training.stop_signals import STOP_SIGNALS, on_stop_signals, takes_its_time


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_a_request_and_the_next_has_its_former_effect(number, monkeypatch):
    monkeypatch.setattr(stop_signals, "REPEATED_WITHIN_S", 0.0)
    heard, former = [], []
    before = signal.signal(number, lambda *_: former.append(1))
    try:
        with on_stop_signals(lambda: heard.append(1)):
            assert takes_its_time(number)
            signal.raise_signal(number)
            assert (heard, former) == ([1], [])
            signal.raise_signal(number)
            assert (heard, former) == ([1], [1])
        assert not takes_its_time(number)
    finally:
        signal.signal(number, before)


def test_a_signal_that_a_launcher_repeats_is_one():
    heard = []
    with on_stop_signals(lambda: heard.append(1)):
        for number in (*STOP_SIGNALS, *STOP_SIGNALS):
            signal.raise_signal(number)
    assert heard == [1]


def test_handlers_are_restored_and_other_threads_have_none():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with on_stop_signals(lambda: None):
        pass
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    seen = []

    def in_a_thread():
        with on_stop_signals(lambda: None):
            seen.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == before

"""The driver's wait for the end of a launch: says what it waits for, and passes a request to stop on.

In: the launch's result, still to come, and its mailbox. Out: the result; or a StoppedError where a request to stop finds no
workers that could save.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from training.launch.mailbox import Mailbox, ask_to_stop
from training.stop_signals import StoppedError, on_stop_signals

LOOKS_EVERY_S = 1.0
SAYS_EVERY_S = 60.0
"""Pause between two lines of a launch that waits for workers."""
T = TypeVar("T")


def in_a_thread(work: Callable[[], T]) -> concurrent.futures.Future[T]:
    """Starts work in a thread that does not keep the process from ending."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="launch", daemon=True).start()
    return future


def wait_for(result: concurrent.futures.Future[T], mailbox: Mailbox, describe: Callable[[], str], saves: bool) -> T:
    """Returns the launch's result.

    Args:
        describe: the workers that the launch needs, and what the cluster has.
        saves: SIGINT and SIGTERM ask the workers to save and end; otherwise they have the effect that they had before.

    Raises:
        StoppedError: asked to stop while no worker trains; the last checkpoint stands.
    """
    asked, waits_since, said_at = threading.Event(), time.monotonic(), 0.0

    def stop() -> None:
        asked.set()
        ask_to_stop(mailbox)

    with on_stop_signals(stop) if saves else contextlib.nullcontext():
        while not concurrent.futures.wait([result], timeout=LOOKS_EVERY_S).done:
            if asked.is_set() and _heard(mailbox, "trains") == "":
                raise StoppedError
            now = time.monotonic()
            if _heard(mailbox, "waits") != "yes":
                waits_since = said_at = now
            elif now - max(waits_since, said_at) >= SAYS_EVERY_S:
                said_at = now
                print(f"waiting for workers for {now - waits_since:,.0f} s: {describe()}", flush=True)
        return result.result()


def _heard(mailbox: Mailbox, name: str) -> str | None:
    """A message; None where the cluster does not answer, which the launch itself will notice."""
    answer: Any = None
    with contextlib.suppress(Exception):
        answer = mailbox.get(name)
    return answer

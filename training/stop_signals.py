"""SIGINT (Ctrl-C) and SIGTERM, where they are a request to save and end.

In: a signal to this process. Out: one call of a function in its main thread. jobs/cli/stopping.py ends all other jobs.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED_WITHIN_S = 1.0
"""Time in which a second signal is taken for the first: a launcher passes on what the terminal has sent to all anyway."""
_TAKES_ITS_TIME = "takes_its_time"


class StoppedError(Exception):
    """A run was asked to stop where it had nothing to save, or could not; the same command resumes."""


@contextlib.contextmanager
def on_stop_signals(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` on the first SIGINT or SIGTERM; a later one has its former effect. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None: a handler that is not Python's
    before: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in STOP_SIGNALS}
    first_at: list[float] = []

    def handle(number: int, _frame: object) -> None:
        if not first_at:
            first_at.append(time.monotonic())
            act()
        elif time.monotonic() - first_at[0] > REPEATED_WITHIN_S:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    setattr(handle, _TAKES_ITS_TIME, True)
    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, before[number])


def takes_its_time(number: int) -> bool:
    """Returns whether a signal is handled by `on_stop_signals` now, where a checkpoint is saved before the end."""
    return hasattr(signal.getsignal(number), _TAKES_ITS_TIME)

"""End a rank whose step hangs, and report where: a run that hangs looks like a run that is slow.

In: the name of each phase that the training loop enters. Out, after too long in a step: rank, step and phase in the log, the
stacks of all threads, and the end of the process, so that the workers are started again.

The ranks of a group wait for each other, so one that hangs makes all of them hang. Those that wait in a collective are given
more time than the one that they wait for, so the first to report is the cause.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

EXIT_HANGS = 75
"""Exit code of a process that its watchdog ended."""
LONGER_WAITING, LONGER_AT_FIRST = 1.5, 3.0


class Watchdog:
    """Watches one rank's loop from a thread, between `start` and `close`."""

    def __init__(self, rank: int, timeout_s: float, waits_for_others: Callable[[], bool]) -> None:
        """
        Args:
            timeout_s: of a step, or of the work between two steps.
            waits_for_others: returns True while the rank is in a collective.
        """
        self.rank, self.timeout_s, self.waits_for_others = rank, timeout_s, waits_for_others
        self._step, self._phase, self._patience = 0, "starting", LONGER_AT_FIRST
        self._since = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._since = time.monotonic()
        self._thread.start()

    def step_begins(self, step: int, slow: bool) -> None:
        """Starts a step's time. `slow`: the first step of a process compiles, allocates and fills its buffers, and the one
        after a checkpoint may wait for the rank that writes it.
        """
        self._step, self._patience = step, LONGER_AT_FIRST if slow else 1.0
        self.phase("waiting for data")

    def phase(self, name: str, patience: float | None = None) -> None:
        """Sets the phase that the rank is in.

        Args:
            patience: for this phase, in timeouts, which also restarts its time; None: as for the step.
        """
        self._phase = name
        if patience is not None:
            self._patience = patience
        if patience is not None or name == "waiting for data":
            self._since = time.monotonic()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        stderr = sys.__stderr__
        while not self._closed.wait(min(1.0, self.timeout_s / 10)):
            # A timer outside Python, for a hang that holds the interpreter's lock, and so this thread.
            if stderr is not None:
                faulthandler.dump_traceback_later(self.timeout_s * LONGER_AT_FIRST, exit=True, file=stderr)
            stood_s = time.monotonic() - self._since
            limit_s = self.timeout_s * self._patience
            if stood_s > limit_s and (not self.waits_for_others() or stood_s > limit_s * LONGER_WAITING):
                self._end(stood_s)

    def _end(self, stood_s: float) -> None:
        where = "waiting for other ranks" if self.waits_for_others() else self._phase
        print(
            f"rank {self.rank} hangs in step {self._step:,}: {where} for {stood_s:,.0f} s "
            f"(train.hang_timeout_s={self.timeout_s:g}); its threads are shown, and it ends",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        os._exit(EXIT_HANGS)

"""Writes checkpoints in a thread while training goes on, one at a time, on rank 0.

A checkpoint that cannot be written is said aloud and costs nothing but itself: the next one is tried as usual. After several in
a row, or where it is the last one of all, the run fails. A run that another process has taken over stops at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from training.errors import RunError

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3


class RunTakenError(RunError):
    """Another process goes on with this run.

    Attributes:
        by_own_launch: it is of the same launch: its workers were started anew.
    """

    by_own_launch = False


class CheckpointError(RunError):
    """Checkpoints cannot be written."""


class CheckpointWriter:
    """One write at a time, in a thread of its own."""

    def __init__(self) -> None:
        self.last_folder = ""
        """Of the last checkpoint that is committed."""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failures = 0

    def begin(self, step: int, write: Callable[[], str], committed: Callable[[int], None]) -> None:
        """Starts to write, when what was begun before is done (`wait`).

        Args:
            write: writes the checkpoint and returns its folder.
            committed: called with the step when it is there.
        """

        def work() -> None:
            try:
                self.last_folder = write()
                self._failures = 0
                print(f"checkpoint at step {step:,}: {self.last_folder}", flush=True)
            except Exception as error:
                self._failures += 1
                self._error = error
                logger.error("the checkpoint of step %s was not written: %s; the last one is %s", step, error, self._last())
                return
            try:
                committed(step)
            except Exception as error:
                logger.warning("nobody was told of the checkpoint of step %s: %s", step, error)

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is done. Raises CheckpointError after `FAILURES_IN_A_ROW`, and RunTakenError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
        if self._failures >= FAILURES_IN_A_ROW:
            raise CheckpointError(self._message(f"{self._failures} checkpoints in a row were not written"))

    def check(self) -> None:
        """Raises RunTakenError where the last write met it. Costs nothing; for every step."""
        if isinstance(self._error, RunTakenError):
            raise self._error

    def finish(self) -> None:
        """Waits for the last one. Raises CheckpointError where it was not written."""
        self.wait()
        if self._failures:
            raise CheckpointError(self._message("the last checkpoint was not written"))

    def _last(self) -> str:
        return self.last_folder or "none"

    def _message(self, what: str) -> str:
        return (
            f"{what} ({self._error}); the last one is {self._last()}. Make room or mend the storage, and start "
            "the same command again: it goes on from there"
        )

"""Background writing of checkpoints on rank 0, one at a time, while training continues.

A checkpoint that cannot be written is logged and loses nothing else: the next one is tried as usual. After several failures in
a row, or when the last checkpoint of the run fails, the run fails. A run that another process has taken over stops at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from training.errors import RunError

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3


class RunTakenError(RunError):
    """Another process has taken over this run.

    Attributes:
        by_own_launch: the process belongs to the same launch, whose workers were started again.
    """

    by_own_launch = False


class CheckpointError(RunError):
    """Checkpoints cannot be written."""


class CheckpointWriter:
    """Writes one checkpoint at a time, in its own thread."""

    def __init__(self) -> None:
        self.last_folder = ""
        """Folder of the last committed checkpoint; empty if there is none."""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failures = 0

    def begin(self, step: int, write: Callable[[], str], committed: Callable[[int], None]) -> None:
        """Starts a write. The one before must have ended (`wait`).

        Args:
            write: writes the checkpoint and returns its folder.
            committed: called with the step when the checkpoint is committed.
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
                logger.warning("the checkpoint of step %s could not be announced: %s", step, error)

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def amend(self, folder: str, change: Callable[[], object]) -> None:
        """Changes the record of a checkpoint after its write, if this was committed. A failure is only a warning."""
        before = self._thread

        def work() -> None:
            if before is not None:
                before.join()
            if self.last_folder != folder:
                return
            try:
                change()
            except RunTakenError as error:
                self._error = error
            except Exception as error:
                logger.warning("the metrics of %s were not added to it: %s", folder, error)

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the write to end. Raises CheckpointError after `FAILURES_IN_A_ROW`, and RunTakenError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
        if self._failures >= FAILURES_IN_A_ROW:
            raise CheckpointError(self._message(f"{self._failures} checkpoints in a row were not written"))

    def check(self) -> None:
        """Raises the last write's RunTakenError, if any. Cheap enough for every step."""
        if isinstance(self._error, RunTakenError):
            raise self._error

    def finish(self) -> None:
        """Waits for the last checkpoint. Raises CheckpointError if it was not written."""
        self.wait()
        if self._failures:
            raise CheckpointError(self._message("the last checkpoint was not written"))

    def _last(self) -> str:
        return self.last_folder or "none"

    def _message(self, what: str) -> str:
        return (
            f"{what} ({self._error}); the last one is {self._last()}. Make room or fix the storage, and run "
            "the same command again: it resumes from there"
        )

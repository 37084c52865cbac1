"""Says what a job of Ray Data waits for while nothing finishes, and ends it if its workers only die meanwhile.

Ray starts a worker that was killed again without end, also one that dies before it begins any work: where too little memory is
left for one, its memory monitor ends each. Work that was begun is counted by pipeline/ingest/attempts.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from jobs.cli.failures import AGAIN
from jobs.cli.last_line import leave, report
from jobs.cli.room import describe_cluster
from pipeline.errors import WorkerDiedError
from pipeline.ingest.progress import SILENT_FOR_S
from training.ray_internals import worker_deaths

FEWEST_DEATHS, DEATHS_OF_EACH = 10, 4
"""Deaths after which a job ends in which nothing finishes: at least 10, and 4 for each of its actors."""


class WorkerWatch:
    """Called by `pipeline.ingest.progress.Waiting`, as long as nothing finishes."""

    def __init__(
        self,
        count: Callable[[], tuple[int, int]] = worker_deaths,
        describe: Callable[[], str] = describe_cluster,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            count: deaths of workers so far, and workers that live.
            end: ends the job with a message.
        """
        self._count, self._describe, self._end = count, describe, end or _end
        self._called_at, self._before = float("-inf"), 0

    def __call__(self) -> str:
        """Returns what the cluster has."""
        now, (deaths, workers) = time.monotonic(), self._count()
        if now - self._called_at > 1.5 * SILENT_FOR_S:  # something has finished meanwhile
            self._before = deaths
        self._called_at = now
        died = deaths - self._before
        if died >= max(FEWEST_DEATHS, DEATHS_OF_EACH * workers):
            self._end(
                f"{died} times a worker died while nothing was finished, as if killed (SIGKILL), which the kernel and Ray do "
                f"when memory runs out; use fewer workers at a time or nodes with more memory; {AGAIN}"
            )
        return self._describe()


def _end(message: str) -> None:
    leave(report(WorkerDiedError(message), Path(sys.argv[0]).name, None, None), tidy=False)

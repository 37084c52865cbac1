"""Keeps tracebacks of workers out of the terminal, which shows progress and messages; they are kept for the job's trace file.

In: lines that Ray collects from its processes on all nodes. Out: those to print.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Sequence

MOST_LINES = 5000
"""Lines of tracebacks that are kept, the latest."""
STARTS = re.compile(r"Traceback \(most recent call last\):|^\[Rank \d+ Error Snippet\]:$")
INNER = re.compile(
    r"^\s|^$|^\.\.\. \(Output truncated|, line \d+, in |^The above exception was the direct cause|"
    r"^During handling of the above exception"
)


class WorkerLines:
    """Sorts lines of processes into those to print and those of tracebacks. Safe from any thread."""

    def __init__(self) -> None:
        self._tracebacks: deque[str] = deque(maxlen=MOST_LINES)
        self._within: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()

    def to_print(self, process: str, lines: Sequence[str]) -> list[str]:
        """Lines to print: all but tracebacks. Of a traceback its last line, which names the error, is printed.

        Args:
            process: a name of the process, and of its stream.
        """
        shown = []
        with self._lock:
            for line in lines:
                begins = STARTS.search(line)
                if begins:
                    self._within.add(process)
                elif process in self._within and not INNER.search(line):
                    self._within.discard(process)
                    self._tracebacks.append(f"({process}) {line}")
                    shown.append(line)
                    continue
                if process in self._within:
                    self._tracebacks.append(f"({process}) {line}")
                else:
                    shown.append(line)
        return [] if self._closed else shown

    def close(self) -> None:
        """Nothing is to be printed from now on."""
        with self._lock:
            self._closed = True

    def tracebacks(self) -> str:
        """The latest tracebacks, with the names of their processes."""
        with self._lock:
            return "\n".join(self._tracebacks)


WORKER_LINES = WorkerLines()
"""Those of this process."""

"""Progress of a job on standard error: a bar on a terminal; elsewhere, e.g. in a job's log, a line every 2 to 30 s."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

FIRST_EVERY_S, EVERY_S = 2.0, 30.0
SILENT_FOR_S = 60.0
"""Time without a finished unit after which a job says what there is to work with, repeatedly."""


class Waiting:
    """Breaks the silence of a job that waits for its workers, which may wait for a cluster to grow."""

    def __init__(self, name: str, describe: Callable[[], str]) -> None:
        """`describe`: says what the cluster has; called from a thread."""
        self._name, self._describe = name, describe
        self._since, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waiting", daemon=True)

    def heard(self) -> None:
        """Something has finished."""
        self._since = time.monotonic()

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        said_at = 0.0
        while not self._ended.wait(min(1.0, SILENT_FOR_S / 10)):
            now = time.monotonic()
            if now - max(self._since, said_at) >= SILENT_FOR_S:
                said_at = now
                with contextlib.suppress(Exception):  # the job itself will notice a cluster that is gone
                    line = f"{self._name}: nothing has finished for {now - self._since:,.0f} s; {self._describe()}"
                    tqdm.write(line, file=sys.stderr)
                    sys.stderr.flush()


class Progress:
    """Counts finished units of a total and reports them: in a log every 2 s at first, later every 30 s."""

    def __init__(self, total: int, unit: str, name: str, describe: Callable[[], str] | None = None) -> None:
        """
        Args:
            unit: the unit of the counts, such as rows; B for bytes, which are shown with a metric prefix.
            describe: says what the cluster has, where units are finished by its workers.
        """
        self.n, self._total, self._name = 0, total, name
        self._unit = unit if unit == "B" else f" {unit}"
        self._shown = tqdm.format_sizeof if unit == "B" else "{:,.0f}".format
        self._began, self._spoke_at, self._spoke_of = time.monotonic(), float("-inf"), -1
        self._note = ""
        # disable=None: show the bar on a terminal only.
        self._waiting = contextlib.ExitStack()
        self._heard = self._waiting.enter_context(Waiting(name, describe)).heard if describe else None
        self._bar = tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=name, mininterval=1.0, disable=None)

    def update(self, count: int, note: str = "") -> None:
        """Adds finished units. `note`: text to show after the counts."""
        self.n, self._note = self.n + count, note
        if self._heard is not None:
            self._heard()
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._spoke_at >= self._pause_s():
            self._speak()

    def close(self) -> None:
        self._waiting.close()
        if self._bar.disable and self.n != self._spoke_of:
            self._speak()
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _pause_s(self) -> float:
        """Interval between lines: a tenth of the elapsed time, within limits."""
        return max(FIRST_EVERY_S, min(EVERY_S, (time.monotonic() - self._began) / 10))

    def _speak(self) -> None:
        self._spoke_at, self._spoke_of = time.monotonic(), self.n
        elapsed_s = max(self._spoke_at - self._began, 1e-9)
        rate = self.n / elapsed_s
        if self.n >= self._total:
            time_left = f"{tqdm.format_interval(elapsed_s)} in all"
        else:
            time_left = f"{tqdm.format_interval((self._total - self.n) / rate)} left" if self.n else "time left unknown"
        done = f"{self._shown(self.n)} of {self._shown(self._total)}{self._unit} ({self.n / max(1, self._total):.0%})"
        shown_rate = f"{self._shown(rate) if rate >= 100 else f'{rate:.1f}'}{self._unit}/s"
        parts = [f"{self._name}: {done}", shown_rate, time_left, *([self._note] if self._note else [])]
        print(", ".join(parts), file=sys.stderr, flush=True)

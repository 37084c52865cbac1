"""The account of a run's time, over all its starts: training, and everything else that time was spent on.

In: the record's rows of each start and of the steps that count. Out: seconds by kind, and goodput: the time of the steps that
count as a share of all time. The time between two launches (a job that ended, and the next one) is not counted.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Launch:
    """One job of a run; workers may be started several times within it.

    Attributes:
        began: its start, in seconds since 1970.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Spent:
    """Seconds of a run so far.

    Attributes:
        training_s: steps that count.
        lost_s: steps that were repeated after a failure.
        start_up_s: from a rank's start to its first step.
        elapsed_s: all time. The part in no other field was spent waiting: for a failure to be noticed, and for workers.
    """

    training_s: float = 0.0
    evaluation_s: float = 0.0
    checkpoints_s: float = 0.0
    lost_s: float = 0.0
    start_up_s: float = 0.0
    elapsed_s: float = 0.0
    starts: int = 0

    @property
    def known_s(self) -> float:
        return self.training_s + self.evaluation_s + self.checkpoints_s + self.lost_s + self.start_up_s

    @property
    def waiting_s(self) -> float:
        return max(0.0, self.elapsed_s - self.known_s)

    @property
    def goodput(self) -> float:
        return self.training_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def as_row(self) -> dict[str, float]:
        return asdict(self) | {"waiting_s": self.waiting_s, "goodput": self.goodput}

    def __str__(self) -> str:
        parts = (
            ("training", self.training_s),
            ("evaluation", self.evaluation_s),
            ("checkpoints", self.checkpoints_s),
            ("lost steps", self.lost_s),
            (f"start-up ({self.starts}x)", self.start_up_s),
            ("waiting for workers", self.waiting_s),
        )
        return f"goodput {self.goodput:.1%} of {self.elapsed_s:,.0f} s: " + ", ".join(f"{name} {s:,.1f} s" for name, s in parts)


class Ledger:
    """Keeps the account of one run, on rank 0, during one start of its workers."""

    def __init__(
        self,
        launch: Launch,
        starts: list[dict[str, Any]],
        kept: Iterable[Mapping[str, Any]],
        cut: Iterable[Mapping[str, Any]],
        began: float,
    ) -> None:
        """
        Args:
            starts: rows of the starts before this one; the last one holds the sums.
            kept: rows of the record that count.
            cut: rows of steps that will be repeated.
            began: seconds since 1970 at which this rank started to prepare.
        """
        kept, cut = list(kept), [row for row in cut if "train_s" in row]  # evaluations have rows of their own, without times
        last = starts[-1] if starts else None
        self._closed_s = last["closed_s"] if last else 0.0
        if last and last["launch"] != launch.id:  # that launch ended with its last row
            heard = max([last["ready"], *(row["time"] for row in (*kept, *cut) if row.get("time"))])
            self._closed_s += max(0.0, heard - last["launch_began"])
        self._launch, self._began = launch, began
        # A row's stops come before its steps: those of the first cut row belong to the last kept step.
        self._stops = {
            name: (stopped_s(last, name) if last else 0.0) + _sum(cut[:1], name) for name in ("evaluation_s", "checkpoint_s")
        }
        self._spent = Spent(
            training_s=_sum(kept, "train_s"),
            evaluation_s=_sum(kept, "evaluation_s") + self._stops["evaluation_s"],
            checkpoints_s=_sum(kept, "checkpoint_s") + self._stops["checkpoint_s"],
            lost_s=(last["lost_s"] if last else 0.0)
            + _sum(cut, "train_s")
            + _sum(cut[1:], "checkpoint_s")
            + _sum(cut[1:], "evaluation_s"),
            start_up_s=last["start_up_s"] if last else 0.0,
            starts=len(starts) + 1,
        )

    def ready(self, step: int, world_size: int) -> dict[str, Any]:
        """Ends the start-up: the first step begins. Returns this start's row."""
        now = time.time()
        self._spent = replace(self._spent, start_up_s=self._spent.start_up_s + max(0.0, now - self._began))
        return {
            "launch": self._launch.id,
            "launch_began": self._launch.began,
            "began": self._began,
            "ready": now,
            "step": step,
            "world_size": world_size,
            "lost_s": self._spent.lost_s,
            "start_up_s": self._spent.start_up_s,
            "closed_s": self._closed_s,
            **self._stops,
        }

    def add(self, train_s: float, evaluation_s: float, checkpoint_s: float) -> Spent:
        """Adds the time since the last call. Returns the sums."""
        one = self._spent
        one = replace(
            one,
            training_s=one.training_s + train_s,
            evaluation_s=one.evaluation_s + evaluation_s,
            checkpoints_s=one.checkpoints_s + checkpoint_s,
        )
        elapsed_s = self._closed_s + time.time() - self._launch.began
        self._spent = replace(one, elapsed_s=max(elapsed_s, one.known_s))  # even if the clock was set back
        return self._spent


def stopped_s(start: Mapping[str, Any], name: str) -> float:
    """Seconds of an account in a start's row; 0 for rows of early versions, which lack it."""
    return float(start[name]) if name in start else 0.0


def _sum(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows if key in row)

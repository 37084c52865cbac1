"""Where a run's time went, over all its starts: what trained it, and what the rest was spent on.

In: what the record says of each start, and of the steps that count. Out: seconds by kind, and goodput, which is the time of the
steps that count as a share of all. Between two launches (a job that ended, and the next one) nobody's time passes.
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
        began: seconds since 1970, when it was started.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Spent:
    """Seconds of a run so far.

    Attributes:
        training_s: of the steps that count.
        lost_s: of steps that were done again after a failure.
        start_up_s: from a rank's start to its first step.
        elapsed_s: in all. What no other field holds was spent on waiting: for a failure to be noticed, and for workers.
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
    """Keeps the account of one run, on rank 0, from one start of its workers to the next."""

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
            starts: the rows of the starts before this one, of which the last one holds the sums.
            kept: rows of the record that count.
            cut: rows of steps that will be done again.
            began: seconds since 1970, when this rank's process started to prepare.
        """
        kept, cut = list(kept), [row for row in cut if "train_s" in row]  # evaluations have rows of their own, without times
        last = starts[-1] if starts else None
        self._closed_s = last["closed_s"] if last else 0.0
        if last and last["launch"] != launch.id:  # that launch ended when it was last heard of
            heard = max([last["ready"], *(row["time"] for row in (*kept, *cut) if row.get("time"))])
            self._closed_s += max(0.0, heard - last["launch_began"])
        self._launch, self._began = launch, began
        # A row's stops were before its steps: those of the first row that is cut belong to the last step that is kept.
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
        """The first step begins. Returns this start's row."""
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
        """Time since the last call. Returns all so far."""
        one = self._spent
        one = replace(
            one,
            training_s=one.training_s + train_s,
            evaluation_s=one.evaluation_s + evaluation_s,
            checkpoints_s=one.checkpoints_s + checkpoint_s,
        )
        elapsed_s = self._closed_s + time.time() - self._launch.began
        self._spent = replace(one, elapsed_s=max(elapsed_s, one.known_s))  # a clock that was set back cannot undo what was done
        return self._spent


def stopped_s(start: Mapping[str, Any], name: str) -> float:
    """What a start's row holds of an account that the first runs had no row for."""
    return float(start[name]) if name in start else 0.0


def _sum(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows if key in row)

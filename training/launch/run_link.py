"""Rank 0's link to the rest of the cluster: requests for checkpoints in, commits and metrics out.

A checkpoint is requested by the driver (stop), by the controller (before the group changes its size), and by the cluster, when
it announces that one of the group's nodes will be removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.metrics import Publisher
from training.launch.mailbox import Mailbox
from training.metrics import publish_row
from training.save_and_stop import Request

SAVED_BEFORE_REMOVAL_S = 15.0
"""Time from a node's last checkpoint to its removal; half of the notice where that is shorter."""
REMOVED_AFTER_S = 120.0
"""Time after which Ray restarts the workers when a node's removal is announced without a deadline."""


class RunLink:
    """The `training.save_and_stop.Link` of rank 0."""

    def __init__(self, mailbox: Mailbox, metrics: Publisher, removal_deadline: Callable[[], float | None]) -> None:
        """
        Args:
            removal_deadline: seconds since 1970 at which one of the group's nodes is removed; 0: at an unknown time; None:
                none is.
        """
        self._mailbox, self._metrics, self._removal_deadline = mailbox, metrics, removal_deadline
        self._save = mailbox.get("save")  # requests to an earlier group are done
        self._save_again_at: float | None = None
        self._said_that_it_trains = False

    def requested(self) -> Request:
        if not self._said_that_it_trains:
            self._mailbox.put("trains", "yes")
            self._said_that_it_trains = True
        request = Request.STOP if self.stop_is_asked() else Request.NONE
        save = self._mailbox.get("save")
        if save != self._save:
            self._save = save
            request |= Request.SAVE
        if self._must_save_before_removal():
            request |= Request.SAVE
        return request

    def stop_is_asked(self) -> bool:
        return bool(self._mailbox.get("stop"))

    def saving(self) -> Callable[[int], None]:
        message = self._save

        def committed(step: int) -> None:
            self._metrics.set("checkpoint_step", step)
            self._metrics.set("checkpoint_time", time.time())
            self._mailbox.put("saved", message)

        return committed

    def recorded(self, row: Mapping[str, Any]) -> None:
        publish_row(row, self._metrics)

    def _must_save_before_removal(self) -> bool:
        """True twice for a node that will be removed: at the notice, and shortly before the deadline."""
        deadline = self._removal_deadline()
        if deadline is None:
            return False
        if self._save_again_at is None:
            deadline = deadline or time.time() + REMOVED_AFTER_S
            left_s = max(0.0, deadline - time.time())
            self._save_again_at = deadline - min(SAVED_BEFORE_REMOVAL_S, left_s / 2)
            print(f"a node of this run will be removed in {left_s:,.0f} s: saving a checkpoint", flush=True)
            return True
        if time.time() > self._save_again_at:
            self._save_again_at = float("inf")
            return True
        return False

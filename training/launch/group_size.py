"""Changes of the worker group's size, seen from the controller: save first, and size the group by the cluster's present nodes.

In: what the controller does (training/ray_internals.py passes it on), and the cluster. Out: a request for a checkpoint before
a running group is resized, and a fresh view of the nodes whenever the size of a group is about to be decided.
"""

from __future__ import annotations

import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from training.launch.mailbox import Mailbox
from training.record.tracking import only_a_warning

DEAD_KNOWN_AFTER_S = 30.0
"""Longest wait of a restart until the cluster knows that a node is dead."""
RESIZE_WAITS_S = 60.0
"""Longest wait of a resize for the checkpoint before it."""
DRAINED_WITHIN_S = 5.0
"""A node whose removal is due within this time is treated as dead."""


class Cluster(Protocol):
    """The nodes, as Ray's controller knows them."""

    @property
    def recount_delay_s(self) -> float:
        """Time for which the controller may still act on its old count of resources."""

    def alive_nodes(self) -> list[dict[str, Any]]:
        """The nodes that are believed to be alive: NodeID, NodeManagerAddress and NodeManagerPort of each."""

    def draining_nodes(self) -> dict[str, float]:
        """NodeID -> seconds since 1970 at which a node is removed; 0 where that is unknown."""

    def recount_resources(self) -> None:
        """Counts the resources of the cluster now, instead of at the controller's next turn."""


class GroupSize:
    """Follows one launch's controller. Its methods are called there, one at a time."""

    def __init__(self, mailbox: Mailbox, cluster: Cluster, check_every_s: float | None) -> None:
        """`check_every_s`: how often a running group checks whether it could be larger; None: the group has one size."""
        self._mailbox, self._cluster, self._check_every_s = mailbox, cluster, check_every_s
        self._group_runs = False
        self._recounted_at = time.monotonic()

    def polled(self) -> None:
        """The controller has asked its workers for their state."""
        if self._check_every_s is not None and time.monotonic() - self._recounted_at > self._check_every_s / 2:
            self._recounted_at = time.monotonic()
            self._recount()

    def scheduling(self, group_runs: bool) -> None:
        """A group will be scheduled: a new one, or one that runs and changes its size."""
        self._group_runs = group_runs
        if not group_runs:
            self._waits()

    def running(self) -> None:
        """The workers of a group have started."""
        with only_a_warning("the driver is not told that the workers have started"):
            self._mailbox.put("waits", "")

    def restarting(self) -> None:
        """The group has failed and will be started again."""
        self._waits()
        with only_a_warning("dead nodes cannot be found"):
            wait_for_dead_nodes(self._cluster)
        self._recount()
        if self._check_every_s is not None:
            time.sleep(self._cluster.recount_delay_s)

    def resizing(self) -> None:
        """The group is about to be stopped and started with another size. Waits until a running one has saved."""
        if not self._group_runs:
            return
        with only_a_warning("the group is resized without a checkpoint before it"):
            wanted = uuid.uuid4().hex
            self._mailbox.put("save", wanted)
            deadline = time.monotonic() + RESIZE_WAITS_S
            while self._mailbox.get("saved") != wanted and time.monotonic() < deadline:
                time.sleep(0.05)
        self._waits()

    def _waits(self) -> None:
        with only_a_warning("the driver is not told that the launch waits for workers"):
            self._mailbox.put("trains", "")
            self._mailbox.put("waits", "yes")

    def _recount(self) -> None:
        """Ray does this every 20 s; until then it would request a group that has lost a node in its old size."""
        with only_a_warning("the cluster's nodes cannot be counted; Ray counts them within 20 s"):
            self._cluster.recount_resources()


def wait_for_dead_nodes(cluster: Cluster) -> None:
    """Waits until the cluster knows of nodes that do not answer or are due to be removed.

    A group that counts on them would wait a minute in vain. Workers of a lost node are missed at once, by the others' broken
    connections; the node itself only after health checks.
    """
    nodes = cluster.alive_nodes()
    with ThreadPoolExecutor(max_workers=32) as pool:
        dead = {node["NodeID"] for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if not answers}
    dead |= {node for node, removed_at in cluster.draining_nodes().items() if 0 < removed_at < time.time() + DRAINED_WITHIN_S}
    deadline = time.monotonic() + DEAD_KNOWN_AFTER_S
    while dead & {node["NodeID"] for node in cluster.alive_nodes()} and time.monotonic() < deadline:
        time.sleep(0.1)


def _answers(node: dict[str, Any]) -> bool:
    """True where a node's raylet accepts a connection."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=1.0).close()
        return True
    except OSError:
        return False

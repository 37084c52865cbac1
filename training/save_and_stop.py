"""Requests to save or stop a run while it trains, and the ranks' agreement on the step after which they follow them.

In: requests, on any rank, at any time, from any thread. Out: on every rank, after the same step, the same requests. They are
exchanged over a process group of their own and arrive one step later, so that no step waits for them.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import logging
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist

from training.distributed import World
from training.stop_signals import on_stop_signals

logger = logging.getLogger(__name__)

POLL_EVERY_S = 0.5


class Request(enum.IntFlag):
    """Action that all ranks take after a step."""

    NONE = 0
    SAVE = 1
    """Write a checkpoint."""
    STOP = 2
    """Write a checkpoint and end this launch."""


class Link(Protocol):
    """Rank 0's connection to the outside, for requests and progress."""

    def requested(self) -> Request:
        """Requests since the last call; called about twice a second, from a thread."""

    def stop_is_asked(self) -> bool:
        """Returns whether the run was asked to stop, now or earlier; on every rank."""

    def saving(self) -> Callable[[int], None]:
        """Notes that a checkpoint is being taken. Returns a function to call with its step, from another thread, on commit."""

    def recorded(self, row: Mapping[str, Any]) -> None:
        """Takes a new row of the record: of a step, an evaluation or a start."""


class Requests:
    """One rank's part in the agreement. Every rank calls `agreed` once a step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: collections.deque[Request] = collections.deque()
        self._on_its_way: tuple[torch.Tensor, Any] | None = None

    def ask(self, request: Request) -> None:
        """Adds a request. Safe from any thread and from a signal's handler."""
        self._asked.append(request)  # atomic: a lock might be held by the code that the signal interrupted

    def is_to_stop(self, link: Link | None) -> bool:
        """Returns whether the run is to stop, before the ranks have agreed on it: for one that cannot take another step."""
        return Request.STOP in list(self._asked) or (link is not None and link.stop_is_asked())

    def agreed(self) -> Request:
        """Requests of any rank at the previous call of `agreed`; with one rank, all requests so far."""
        if self._world.is_alone:
            return self._take()
        arrived = self._receive()
        own = self._take()
        bits = torch.tensor([int(flag in own) for flag in _FLAGS], dtype=torch.uint8)
        work = dist.all_reduce(bits, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        self._on_its_way = (bits, work)
        return arrived

    def close(self) -> None:
        """Receives the last requests."""
        self._receive()

    def _receive(self) -> Request:
        if self._on_its_way is None:
            return Request.NONE
        bits, work = self._on_its_way
        self._on_its_way = None
        with self._world.communication.waiting():
            work.wait()
        return functools.reduce(
            operator.or_, (flag for flag, bit in zip(_FLAGS, bits.tolist(), strict=True) if bit), Request.NONE
        )

    def _take(self) -> Request:
        taken = Request.NONE
        while self._asked:
            taken |= self._asked.popleft()
        return taken


_FLAGS = (Request.SAVE, Request.STOP)


@contextlib.contextmanager
def listening(requests: Requests, link: Link | None) -> Iterator[None]:
    """Passes on the link's requests, and SIGINT and SIGTERM as STOP if this is the process's main thread."""
    ended = threading.Event()

    def listen() -> None:
        while link is not None and not ended.wait(POLL_EVERY_S):
            try:
                requests.ask(link.requested())
            except Exception as error:
                logger.warning("requests to this run cannot be read (%s: %s); asking again", type(error).__name__, error)

    thread = threading.Thread(target=listen, name="requests", daemon=True)
    thread.start()
    with on_stop_signals(lambda: requests.ask(Request.STOP)):
        try:
            yield
        finally:
            ended.set()

"""What a run is asked for while it trains, and how its ranks agree on the step at which they do it.

In: requests, on any rank, at any time, from any thread. Out: on every rank, after the same step, the same requests. The word
goes around beside the training, over a group of its own, and arrives one step later, so that no step waits for it.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import logging
import operator
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist

from training.distributed import World

logger = logging.getLogger(__name__)

POLL_EVERY_S = 0.5


class Request(enum.IntFlag):
    """What all ranks do after a step."""

    NONE = 0
    SAVE = 1
    """A checkpoint."""
    STOP = 2
    """A checkpoint, and the end of this launch."""


class Link(Protocol):
    """Who asks from outside, and is told how it goes; rank 0 listens and speaks."""

    def requested(self) -> Request:
        """What was asked for since the last call; called about twice a second, from a thread."""

    def saving(self) -> Callable[[int], None]:
        """A checkpoint is being taken. Returns what to call with its step when it is committed, from another thread."""

    def recorded(self, row: Mapping[str, Any]) -> None:
        """The record has a new row: of a step, of an evaluation, or of a start."""


class Requests:
    """One rank's end of the agreement. Every rank calls `agreed` once a step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: collections.deque[Request] = collections.deque()
        self._on_its_way: tuple[torch.Tensor, Any] | None = None

    def ask(self, request: Request) -> None:
        """From any thread, or from a signal's handler."""
        self._asked.append(request)  # whole in itself: a lock might be held by what the signal interrupted

    def agreed(self) -> Request:
        """What any rank had asked for when `agreed` was called the time before; alone, what was asked for so far."""
        if self._world.world_size == 1:
            return self._take()
        arrived = self._receive()
        own = self._take()
        bits = torch.tensor([int(flag in own) for flag in _FLAGS], dtype=torch.uint8)
        work = dist.all_reduce(bits, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        self._on_its_way = (bits, work)
        return arrived

    def close(self) -> None:
        """Lets the last word arrive."""
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
    """Passes on what the link asks for, and SIGTERM where this is a process's main thread: it then means STOP.

    A second SIGTERM does what it did before.
    """
    ended = threading.Event()

    def listen() -> None:
        while link is not None and not ended.wait(POLL_EVERY_S):
            try:
                requests.ask(link.requested())
            except Exception as error:
                logger.warning("requests to this run cannot be read (%s: %s); asking again", type(error).__name__, error)

    thread = threading.Thread(target=listen, name="requests", daemon=True)
    thread.start()
    with on_sigterm(lambda: requests.ask(Request.STOP)):
        try:
            yield
        finally:
            ended.set()


@contextlib.contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """In a process's main thread, SIGTERM acts, and a second one does what it did before; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: a handler that is not Python's

    def handle(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        act()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""How a host is treated: so many requests at a time, none while it asked for a pause, none for a while when it is dead.

In: a host's name before a request, and how the request ended. Out: a turn, or the reason why there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pipeline.config import FetchConfig
from pipeline.types import Failure

MAX_HOSTS = 50_000
"""Idle hosts beyond this are forgotten, the longest unused first."""


@dataclass
class Host:
    """What is known of one host.

    Attributes:
        failures: requests in a row that got no answer.
        not_before: `time.monotonic()` of the end of a pause that it asked for.
        down_until: the same of the end of a pause that its failures earned.
    """

    turns: asyncio.Semaphore
    failures: int = 0
    not_before: float = 0.0
    down_until: float = 0.0
    users: int = field(default=0)

    def answered(self) -> None:
        self.failures = 0

    def wants_pause(self, seconds: float) -> None:
        self.not_before = max(self.not_before, time.monotonic() + seconds)


class Hosts:
    """The hosts of one event loop."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Host | Failure]:
        """Waits for a turn at a host; a Failure when it is down."""
        host = self._host(name)
        host.users += 1
        try:
            async with host.turns:
                pause_s = host.not_before - time.monotonic()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                if host.down_until > time.monotonic():
                    text = f"{name} gave no answer to {self._config.host_max_failures} requests in a row"
                    yield Failure("failed_to_download", "host_down", text)
                else:
                    yield host
        finally:
            host.users -= 1

    def no_answer(self, host: Host) -> None:
        """Counts a request that ended without any answer; enough of them, and the host is left alone."""
        host.failures += 1
        if host.failures >= self._config.host_max_failures:
            host.failures = self._config.host_max_failures - 1  # after the pause one more is enough
            host.down_until = time.monotonic() + self._config.host_pause_s

    def _host(self, name: str) -> Host:
        if name in self._hosts:
            self._hosts.move_to_end(name)
            return self._hosts[name]
        while len(self._hosts) >= MAX_HOSTS:
            oldest = next(iter(self._hosts))
            if self._hosts[oldest].users:
                break
            del self._hosts[oldest]
        host = self._hosts[name] = Host(asyncio.Semaphore(self._config.host_concurrency))
        return host

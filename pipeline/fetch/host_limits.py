"""How a host is treated: so many requests at a time, none while it asked for a pause, none for a while when it is dead.

In: a host's name before a request, and how the request ended. Out: a turn, or the reason why there is none.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from pipeline.config import FetchConfig
from pipeline.errors import Failure

MAX_HOSTS = 50_000
"""Beyond this the host that was not asked for the longest time is forgotten."""


@dataclass
class Host:
    """What is known of one host.

    Attributes:
        turns: one for each request that it may have at a time.
        failures: requests in a row that got no answer.
        not_before: `time.monotonic()` of the end of a pause that it asked for.
        down_until: the same of the end of a pause that its failures earned.
    """

    name: str
    turns: asyncio.Semaphore
    failures: int = 0
    not_before: float = 0.0
    down_until: float = 0.0

    async def wait_until_welcome(self) -> Failure | None:
        """Waits as long as the host asked for; a Failure when it is down. Called while a turn is held."""
        now = time.monotonic()
        if self.not_before > now:
            await asyncio.sleep(self.not_before - now)
            now = time.monotonic()
        if self.down_until > now:
            return Failure("failed_to_download", "host_down", f"{self.name} gave no answer to several requests in a row")
        return None

    def answered(self) -> None:
        self.failures = 0

    def wants_pause(self, seconds: float) -> None:
        self.not_before = max(self.not_before, time.monotonic() + seconds)


class Hosts:
    """The hosts of one event loop."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    def host(self, name: str) -> Host:
        if name in self._hosts:
            self._hosts.move_to_end(name)
            return self._hosts[name]
        if len(self._hosts) >= MAX_HOSTS:
            self._hosts.popitem(last=False)
        host = self._hosts[name] = Host(name, asyncio.Semaphore(self._config.host_concurrency))
        return host

    def no_answer(self, host: Host) -> None:
        """Counts a request that ended without any answer; enough of them, and the host is left alone."""
        host.failures += 1
        if host.failures >= self._config.host_max_failures:
            host.failures = self._config.host_max_failures - 1  # after the pause one more is enough
            host.down_until = time.monotonic() + self._config.host_pause_s

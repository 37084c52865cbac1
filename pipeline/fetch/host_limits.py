"""Limits for each host: concurrent requests, pauses that it asks for, and pauses after repeated failures.

In: a host's name before a request, and the request's outcome. Out: permission to send, or a Failure.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from pipeline.config import FetchConfig
from pipeline.errors import Failure

MAX_HOSTS = 50_000
"""Number of hosts above which the least recently used one is forgotten."""


@dataclass
class Host:
    """The state of one host.

    Attributes:
        turns: limits its concurrent requests.
        failures: requests in a row that got no answer.
        not_before: `time.monotonic()` at which a pause that it asked for ends.
        down_until: `time.monotonic()` at which a pause after failures ends.
    """

    name: str
    turns: asyncio.Semaphore
    failures: int = 0
    not_before: float = 0.0
    down_until: float = 0.0

    async def wait_until_allowed(self) -> Failure | None:
        """Waits as long as the host asked for; returns a Failure if it is down. The caller holds a turn."""
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
        """Counts a request without an answer; after `host_max_failures` in a row the host is paused."""
        host.failures += 1
        if host.failures >= self._config.host_max_failures:
            host.failures = self._config.host_max_failures - 1  # after the pause one more failure is enough
            host.down_until = time.monotonic() + self._config.host_pause_s

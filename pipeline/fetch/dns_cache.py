"""A bounded cache in front of aiohttp's DNS resolver, for answers and failures.

A table holds thousands of rows of one host, alive or dead. A cached answer is no security risk: the address guard checks every
socket that is opened (pipeline/fetch/address_guard.py).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

FOUND_S, NOT_FOUND_S = 300.0, 30.0
"""Lifetime of an answer, and of a failure."""
MAX_NAMES = 50_000

Key = tuple[str, int, int]


class CachingResolver(AbstractResolver):
    """Makes one query for all concurrent requests for a name, and reuses its answer while it is valid."""

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = DefaultResolver() if inner is None else inner
        self._answers: OrderedDict[Key, tuple[float, asyncio.Future[list[ResolveResult]]]] = OrderedDict()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Raises OSError for a name without addresses."""
        key = (host, port, int(family))
        known = self._answers.get(key)
        if known is None or known[0] < time.monotonic():
            answer: asyncio.Future[list[ResolveResult]] = asyncio.ensure_future(self._inner.resolve(host, port, family))
            self._answers[key] = (time.monotonic() + FOUND_S, answer)
            self._answers.move_to_end(key)
            answer.add_done_callback(lambda done: self._note(key, done))
            while len(self._answers) > MAX_NAMES:
                self._answers.popitem(last=False)
        else:
            answer = known[1]
        return await asyncio.shield(answer)  # one caller's deadline must not cancel the query of the others

    def _note(self, key: Key, answer: asyncio.Future[list[ResolveResult]]) -> None:
        """Shortens the lifetime of a failure."""
        if answer.cancelled():
            self._answers.pop(key, None)
        elif answer.exception() is not None:
            self._answers[key] = (time.monotonic() + NOT_FOUND_S, answer)

    async def close(self) -> None:
        await self._inner.close()

"""Names to addresses, asked for once: a bounded cache in front of aiohttp's resolver, for failures as well.

A table holds thousands of rows of one host, alive or dead. What is cached is no security risk: the address guard looks at every
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
"""How long an answer is good."""
MAX_NAMES = 50_000

Key = tuple[str, int, int]


class CachingResolver(AbstractResolver):
    """One query for all who ask for a name at once, and for those who ask soon after."""

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
        return await asyncio.shield(answer)  # one asker's deadline must not end the query of the others

    def _note(self, key: Key, answer: asyncio.Future[list[ResolveResult]]) -> None:
        """Lets a failure be asked for again sooner."""
        if answer.cancelled():
            self._answers.pop(key, None)
        elif answer.exception() is not None:
            self._answers[key] = (time.monotonic() + NOT_FOUND_S, answer)

    async def close(self) -> None:
        await self._inner.close()

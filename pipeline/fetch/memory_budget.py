"""A limit on the bytes of images that one worker holds in memory.

Every row has a claim, which grows while its body arrives, shrinks to the stored image and ends when that is written. Rows
start in order while there is room. Of the rows that are reading, the first in order may exceed the limit, one at a time: so
one row can always proceed, and the limit is exceeded by one body at most.
"""

from __future__ import annotations

import asyncio


class Memory:
    """The claims of one event loop, limited to `limit_bytes` in total."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.peak_bytes = 0
        self._growing: set[Claim] = set()
        self._exempt: Claim | None = None
        self._waiting: list[asyncio.Future[None]] = []

    async def room(self) -> None:
        """Waits until another row may start."""
        while self.used_bytes >= self.limit_bytes:
            await self._change()

    def claim(self, row: int) -> Claim:
        return Claim(self, row)

    def _may_grow(self, claim: Claim, count: int) -> bool:
        if self.used_bytes + count <= self.limit_bytes:
            return True
        if self._exempt is None:
            self._exempt = min(self._growing, key=lambda other: other.row)
        return claim is self._exempt

    async def _change(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Claim:
    """The bytes that one row holds."""

    def __init__(self, memory: Memory, row: int) -> None:
        self.row = row
        self._memory = memory
        self._bytes = 0

    def try_grow(self, count: int) -> bool:
        """Adds received bytes if there is room for them. Returns False if there is none."""
        memory = self._memory
        memory._growing.add(self)
        if not memory._may_grow(self, count):
            return False
        memory.used_bytes += count
        memory.peak_bytes = max(memory.peak_bytes, memory.used_bytes)
        self._bytes += count
        return True

    async def grow(self, count: int) -> None:
        """Adds bytes, waiting until there is room."""
        while not self.try_grow(count):
            await self._memory._change()

    def settle(self, count: int) -> None:
        """Ends growing and keeps `count` bytes."""
        memory = self._memory
        memory._growing.discard(self)
        if memory._exempt is self:
            memory._exempt = None
        memory.used_bytes += count - self._bytes
        self._bytes = count
        memory._changed()

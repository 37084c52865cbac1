"""A host name is resolved once, whether it exists or not."""

import asyncio
import time

import pytest

from pipeline.fetch.dns_cache import CachingResolver


class Resolver:
    def __init__(self, fails: bool) -> None:
        self.asked, self.fails = 0, fails

    async def resolve(self, host, port=0, family=0):
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.fails:
            raise OSError("no such name")
        return [{"hostname": host, "host": "192.0.2.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_name_is_asked_for_once_whether_it_is_found_or_not(fails, monkeypatch):
    inner = Resolver(fails)

    async def work():
        resolver = CachingResolver(inner)
        first = await asyncio.gather(*(resolver.resolve("a.example", 80) for _ in range(20)), return_exceptions=True)
        again = await asyncio.gather(resolver.resolve("a.example", 80), return_exceptions=True)
        assert inner.asked == 1
        monkeypatch.setattr("pipeline.fetch.dns_cache.time.monotonic", lambda: time.perf_counter() + 1e6)
        await asyncio.gather(resolver.resolve("a.example", 80), return_exceptions=True)
        assert inner.asked == 2, "an answer is not good for ever"
        return first + again

    outcomes = asyncio.run(work())
    assert all(isinstance(outcome, OSError) for outcome in outcomes) == fails

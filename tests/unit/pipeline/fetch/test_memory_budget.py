"""Memory stays within its limit, and every row gets through."""

import asyncio

from pipeline.config import FetchConfig
from pipeline.fetch.http_client import Fetched, Fetcher
from pipeline.fetch.memory_budget import Memory


def test_memory_is_bounded_and_nobody_waits_for_ever():
    """Readers of random sizes, results that are written in order: the bound holds but for one body, and all come through."""
    import random

    rng = random.Random(0)
    sizes = [rng.randint(1, 400) for _ in range(300)]

    async def row(memory, number, turns, done):
        claim = memory.claim(number)
        async with turns:
            for _ in range(sizes[number]):
                await claim.grow(1)
                if rng.random() < 0.05:
                    await asyncio.sleep(0)
        claim.settle(min(20, sizes[number]))
        done[number].set_result(claim)

    async def work():
        memory, turns = Memory(1000), asyncio.Semaphore(16)
        loop = asyncio.get_running_loop()
        done = [loop.create_future() for _ in sizes]

        async def start():
            for number in range(len(sizes)):
                await memory.room()
                tasks.append(asyncio.create_task(row(memory, number, turns, done)))
                await asyncio.sleep(0)

        tasks = []
        starting = asyncio.create_task(start())
        for future in done:
            (await future).settle(0)
        await starting
        return memory

    memory = asyncio.run(asyncio.wait_for(work(), 30))
    assert memory.used_bytes == 0
    assert memory.peak_bytes <= 1000 + 400


def test_large_bodies_wait_for_room_without_losing_their_deadline(web):
    urls = [web.put(f"/{number}", bytes(300_000)) for number in range(12)]
    config = FetchConfig(allow_addresses=("127.0.0.1/32",))

    async def work():
        memory = Memory(500_000)
        async with Fetcher(config) as fetcher:

            async def one(number, url):
                claim = memory.claim(number)
                outcome = await fetcher.fetch(url, claim)
                await asyncio.sleep(0.05)
                claim.settle(0)
                return outcome

            return await asyncio.gather(*(one(number, url) for number, url in enumerate(urls))), memory

    outcomes, memory = asyncio.run(work())
    assert all(isinstance(outcome, Fetched) and len(outcome.body) == 300_000 for outcome in outcomes)
    assert memory.peak_bytes <= 500_000 + 300_000

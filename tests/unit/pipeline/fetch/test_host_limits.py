"""Hosts are asked gently, names once, and memory stays within its bound."""

import asyncio
import time

import pytest

from pipeline.config import FetchConfig
from pipeline.errors import Failure
from pipeline.fetch.dns_cache import CachingResolver
from pipeline.fetch.http_client import Fetched, Fetcher
from pipeline.fetch.memory_budget import Memory


def fetch_all(urls, **options):
    values = {"allow_addresses": ("127.0.0.1/32",), "total_timeout_s": 5, "read_timeout_s": 3} | options

    async def work():
        async with Fetcher(FetchConfig(**values)) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    return asyncio.run(work())


def test_a_host_has_so_many_requests_at_a_time(web):
    under_way, most = [0], [0]

    def slow(handler):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.05)
        under_way[0] -= 1
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    urls = [web.put(f"/{number}", slow) for number in range(20)]
    assert fetch_all(urls, host_concurrency=3) == [Fetched(b"ok")] * 20
    assert most[0] <= 3


def test_waiting_for_a_turn_costs_no_url_its_deadline(web):
    def slow(handler):
        time.sleep(0.2)
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    urls = [web.put(f"/{number}", slow) for number in range(10)]
    assert fetch_all(urls, host_concurrency=1, total_timeout_s=1) == [Fetched(b"ok")] * 10


def test_a_dead_host_is_left_alone_after_some_failures(web):
    def silent(handler):
        time.sleep(0.6)

    urls = [web.put(f"/{number}", silent) for number in range(40)]
    began = time.monotonic()
    outcomes = fetch_all(urls, host_concurrency=4, host_max_failures=4, read_timeout_s=0.3)
    assert time.monotonic() - began < 3
    reasons = [outcome.reason for outcome in outcomes]
    assert reasons.count("timeout") + reasons.count("host_down") == 40
    assert reasons.count("host_down") >= 30
    assert len(web.requests) <= 10


def test_a_host_that_was_down_is_asked_again_after_the_pause(web):
    dead = [True]

    def page(handler):
        if dead[0]:
            handler.close_connection = True
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    url = web.put("/a", page)
    config = FetchConfig(
        allow_addresses=("127.0.0.1/32",), attempts=1, host_max_failures=2, host_pause_s=0.3, host_concurrency=1
    )

    async def work():
        async with Fetcher(config) as fetcher:
            first = [await fetcher.fetch(url) for _ in range(3)]
            dead[0] = False
            await asyncio.sleep(0.4)
            return first, await fetcher.fetch(url)

    first, later = asyncio.run(work())
    assert [outcome.reason for outcome in first] == ["connection_lost", "connection_lost", "host_down"]
    assert later == Fetched(b"ok")


def test_a_request_for_a_pause_slows_the_whole_host(web):
    def busy(handler):
        handler.send_response(503)
        handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    busy_url, other = web.put("/busy", busy), web.put("/other", b"ok")
    config = FetchConfig(allow_addresses=("127.0.0.1/32",), attempts=1)

    async def work():
        async with Fetcher(config) as fetcher:
            await fetcher.fetch(busy_url)
            began = time.monotonic()
            outcome = await fetcher.fetch(other)
            return outcome, time.monotonic() - began

    outcome, waited_s = asyncio.run(work())
    assert outcome == Fetched(b"ok")
    assert waited_s > 0.9


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


def test_a_failure_of_a_url_is_not_held_against_its_host(web):
    web.put("/ok", b"ok")
    urls = [f"{web.address}/gone{number}" for number in range(30)] + [f"{web.address}/ok"]
    outcomes = fetch_all(urls, host_max_failures=2)
    assert [outcome.reason for outcome in outcomes[:-1] if isinstance(outcome, Failure)] == ["http_404"] * 30
    assert outcomes[-1] == Fetched(b"ok")

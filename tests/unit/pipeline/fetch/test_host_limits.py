"""Hosts get few requests at a time, the pauses that they ask for, and a rest when they are down."""

import asyncio
import time

from pipeline.config import FetchConfig
from pipeline.errors import Failure
from pipeline.fetch.http_client import Fetched, Fetcher


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


def test_a_failure_of_a_url_is_not_held_against_its_host(web):
    web.put("/ok", b"ok")
    urls = [f"{web.address}/gone{number}" for number in range(30)] + [f"{web.address}/ok"]
    outcomes = fetch_all(urls, host_max_failures=2)
    assert [outcome.reason for outcome in outcomes[:-1] if isinstance(outcome, Failure)] == ["http_404"] * 30
    assert outcomes[-1] == Fetched(b"ok")

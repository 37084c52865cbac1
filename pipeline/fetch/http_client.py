"""HTTP client: `Fetcher.fetch(url)` returns a body, or the reason for the failure.

It uses aiohttp, with the address guard in its connector, a deadline for the whole URL and one for each read, and a limit on the
decompressed body. Redirects are followed one by one, so that each is checked and waits for its host's turn. Only failures that
may be temporary are retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.errors import Failure
from pipeline.fetch.address_guard import REFUSED, GuardedSocketFactory, parse_networks
from pipeline.fetch.dns_cache import CachingResolver
from pipeline.fetch.host_limits import Host, Hosts
from pipeline.fetch.memory_budget import Claim

AGENT = "rayclip"
FIRST_DELAY_S = 0.5
RETRY_AFTER_CAP_S = 10.0

_OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "noml", "none"}
_DIRECTIVES_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
_REDIRECTS = {301, 302, 303, 307, 308}
_NO_ANSWER = {"timeout", "dns", "connect", "connection_lost"}
"""Reasons that concern the host rather than the URL."""


@dataclass(frozen=True)
class Fetched:
    """The complete body of a URL."""

    body: bytes


@dataclass(frozen=True)
class _Retry:
    """A failure that may be temporary."""

    failure: Failure
    after_s: float | None = None


class Fetcher:
    """An HTTP client for one event loop: `async with Fetcher(config) as fetcher: await fetcher.fetch(url)`."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self._allowed = parse_networks(config.allow_addresses)
        contact = f" (+{config.user_agent_contact})" if config.user_agent_contact else ""
        self._headers = {"User-Agent": f"{AGENT}/0.1{contact}", "Accept": "image/*;q=1.0, */*;q=0.1"}

    async def __aenter__(self) -> Fetcher:
        connector = aiohttp.TCPConnector(
            limit=0,  # limited by our own semaphores: waiting for them does not count against a URL's deadline
            socket_factory=GuardedSocketFactory(self._allowed),
            resolver=CachingResolver(),
            use_dns_cache=False,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would connect for us, past the guard
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.config.read_timeout_s, sock_read=self.config.read_timeout_s
            ),
        )
        self._hosts = Hosts(self.config)
        self._connections = asyncio.Semaphore(self.config.concurrency)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str, claim: Claim | None = None) -> Fetched | Failure:
        """Fetches a URL within `total_timeout_s`, retries and redirects included. A bad URL or answer never raises.

        Args:
            claim: grows with the bytes that are read; reading waits while it has no room.
        """
        deadline = _Deadline(self.config.total_timeout_s)
        delay_s = FIRST_DELAY_S
        for attempt in itertools.count(1):
            outcome = await self._once(url, claim, deadline)
            if not isinstance(outcome, _Retry):
                return outcome
            if claim is not None:
                claim.settle(0)
            wait_s = delay_s * random.uniform(0.5, 1.5) if outcome.after_s is None else min(outcome.after_s, RETRY_AFTER_CAP_S)
            if attempt == self.config.attempts or wait_s >= deadline.left_s:
                return outcome.failure
            deadline.left_s -= wait_s
            await asyncio.sleep(wait_s)
            delay_s *= 2
        raise AssertionError("unreachable")

    async def _once(self, url: str, claim: Claim | None, deadline: _Deadline) -> Fetched | Failure | _Retry:
        """One attempt: follows redirects, then reads the body."""
        target: URL | Failure = parse_url(url)
        for _ in range(self.config.max_redirects + 1):
            if isinstance(target, Failure):
                return target
            host = self._hosts.host(f"{target.host}:{target.port}")
            async with host.turns:
                refusal = await host.wait_until_allowed()
                if refusal is not None:
                    return refusal
                async with self._connections:
                    outcome = await self._ask(target, host, claim, deadline)
            if not isinstance(outcome, str):
                return outcome
            target = parse_url(outcome, base=target)
        return download_failure("too_many_redirects", f"more than {self.config.max_redirects} redirects")

    async def _ask(self, target: URL, host: Host, claim: Claim | None, deadline: _Deadline) -> Fetched | Failure | _Retry | str:
        """One request; for a redirect returns the value of its Location header."""
        outcome: Failure | _Retry
        try:
            async with deadline, self._session.get(target, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    host.answered()
                    return response.headers["Location"]
                answer = await self._read(response, host, claim, deadline)
                host.answered()
                return answer
        except TimeoutError as error:
            if deadline.left_s <= 0:
                outcome = download_failure("timeout", f"no complete answer within {self.config.total_timeout_s:g} s")
            else:
                outcome = download_failure(
                    "timeout", " ".join(str(error).split()) or f"silent for {self.config.read_timeout_s:g} s"
                )
        except Exception as error:  # whatever one answer provokes in the client must not fail the other rows
            outcome = _explain(error)
        if _reason(outcome) in _NO_ANSWER:
            self._hosts.no_answer(host)
        return outcome

    async def _read(
        self, response: aiohttp.ClientResponse, host: Host, claim: Claim | None, deadline: _Deadline
    ) -> Fetched | Failure | _Retry:
        """Checks status and headers, then reads the body up to the limit."""
        if response.status != 200:
            failure = download_failure(f"http_{response.status}", f"HTTP status {response.status}")
            if response.status == 429 or response.status >= 500:
                pause_s = _retry_after(response)
                if pause_s is not None:
                    host.wants_pause(min(pause_s, RETRY_AFTER_CAP_S))
                return _Retry(failure, pause_s)
            return failure
        directive = opt_out(response.headers.getall("X-Robots-Tag", []))
        if directive is not None:
            return download_failure("robots", f"X-Robots-Tag: {directive}")
        limit = self.config.max_bytes
        if response.content_length is not None and response.content_length > limit:
            return download_failure("too_large", f"Content-Length {response.content_length} is over {limit} bytes")
        body = bytearray()
        while chunk := await response.content.readany():
            if claim is not None and not claim.try_grow(len(chunk)):
                with deadline.stopped():
                    await claim.grow(len(chunk))
            body += chunk
            if len(body) > limit:
                return download_failure("too_large", f"the body is over {limit} bytes")
        if not body:
            return download_failure("empty_body", "the answer has no body")
        return Fetched(bytes(body))


class _Deadline:
    """Time that a URL has left. It runs during requests, but not while waiting for a turn or for memory."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(self.left_s)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises TimeoutError if the deadline has passed."""
        until = self._timeout.when()
        self.left_s = 0.0 if until is None else until - asyncio.get_running_loop().time()
        await self._timeout.__aexit__(kind, error, trace)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops the clock within the block."""
        loop = asyncio.get_running_loop()
        until, began = self._timeout.when(), loop.time()
        assert until is not None
        self._timeout.reschedule(None)
        yield
        self._timeout.reschedule(until + loop.time() - began)


def parse_url(url: str, base: URL | None = None) -> URL | Failure:
    """Parses an absolute http or https URL, or returns the reason why it is not one."""
    if re.search(r"[\x00-\x20\\\x7f]", url.strip()):
        return download_failure("bad_url", "the URL holds a control character, a space or a backslash")
    try:
        parsed = URL(url.strip()) if base is None else base.join(URL(url.strip()))
        host = parsed.host
        parsed.port  # noqa: B018 (raises for an invalid port)
    except (ValueError, TypeError, UnicodeError) as error:
        return download_failure("bad_url", f"not a URL: {error}")
    if not parsed.scheme:
        return download_failure("bad_url", "the URL has no scheme")
    if parsed.scheme not in ("http", "https"):
        return download_failure("unknown_scheme", f"{parsed.scheme}: is not fetched; only http and https are")
    if not host:
        return download_failure("bad_url", "the URL has no host")
    if parsed.user is not None or parsed.password is not None:
        return download_failure("bad_url", "the URL holds a user name or a password")
    return parsed


def opt_out(values: list[str]) -> str | None:
    """The directive of X-Robots-Tag that forbids our use, if any. A value may be scoped to another agent by `name:`."""
    for value in values:
        scope, colon, rest = value.partition(":")
        scoped = bool(colon) and "," not in scope and scope.strip().lower() not in _DIRECTIVES_WITH_VALUE
        if scoped and scope.strip().lower() not in (AGENT, "*"):
            continue
        for directive in (rest if scoped else value).split(","):
            if directive.strip().lower() in _OPT_OUT:
                return directive.strip().lower()
    return None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a Retry-After header; None, for the default back-off, if it is missing or a date."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(response.headers["Retry-After"]))
    return None


def download_failure(reason: str, message: str) -> Failure:
    """A failure with a message in valid UTF-8: headers may hold other bytes, which parquet would refuse."""
    return Failure("failed_to_download", reason, message.encode("utf-8", "replace").decode())


def _reason(outcome: Failure | _Retry) -> str:
    return outcome.reason if isinstance(outcome, Failure) else outcome.failure.reason


def _explain(error: Exception) -> Failure | _Retry:
    """Maps aiohttp's exceptions to reasons. Order: subclasses first."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if REFUSED in text:
        return download_failure("address_refused", text)
    if isinstance(error, aiohttp.InvalidURL):
        return download_failure("bad_url", text)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return download_failure("dns", text)
    if isinstance(error, aiohttp.ClientSSLError):
        return download_failure("tls", text)
    if isinstance(error, aiohttp.ServerTimeoutError | TimeoutError):
        return download_failure("timeout", text)
    if isinstance(error, aiohttp.ClientConnectorError):
        return download_failure("connect", text)
    if isinstance(error, aiohttp.ClientResponseError):
        return download_failure("bad_answer", text)
    if isinstance(error, aiohttp.ClientError | OSError):
        return _Retry(download_failure("connection_lost", text))
    if isinstance(error, ValueError):
        return download_failure("bad_url", text)
    return download_failure("error", f"{type(error).__name__}: {text}")

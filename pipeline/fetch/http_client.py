"""HTTP client: `Fetcher.fetch(url)` returns a body, or the reason for the failure.

It uses aiohttp, with the address guard in its connector, a deadline for the whole URL and one for each read, and a limit on the
decompressed body. Redirects are followed one by one, so that each is checked and waits for its host's turn. Only failures that
may be temporary are retried. It is as tolerant as browsers: docs/decisions/0020-urls-and-images.md has the rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType

import aiohttp
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.errors import Failure
from pipeline.fetch.address_guard import REFUSED, GuardedSocketFactory, parse_networks
from pipeline.fetch.body import ACCEPT_ENCODING, BrokenBodyError, TooLargeError, decompress, is_whole_image
from pipeline.fetch.dns_cache import CachingResolver
from pipeline.fetch.host_limits import Host, Hosts
from pipeline.fetch.memory_budget import Claim
from pipeline.fetch.tolerant_protocol import MAX_HEAD_BYTES, BrokenAnswerError, TolerantConnector
from pipeline.fetch.web_url import WebURL, parse_url

AGENT = "rayclip"
FIRST_DELAY_S = 0.5
RETRY_AFTER_CAP_S = 10.0
ACCEPT = "image/avif, image/webp, image/png, image/jpeg, image/gif, image/bmp, image/tiff"
"""The formats that pipeline/transform/image.py decodes. No wildcard, or servers send others."""

_OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "noml", "none"}
_DIRECTIVES_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
_SCOPE = re.compile(r"\s*(\*|[a-z][a-z0-9_. -]*?)\s*:")
"""The agent that the directives of X-Robots-Tag behind it are meant for."""
_OP_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, from Python 3.12 on
_REDIRECTS = {301, 302, 303, 307, 308}
_WITHOUT_BODY = {204, 205}
_TEMPORARY = {408, 425, 429}
_SPELLING_REFUSED = {"http_400", "http_403", "http_404", "http_410"}
"""Reasons after which a URL is asked for again as browsers spell it, if that differs."""
_NO_ANSWER = {"timeout", "dns", "connect", "connection_lost"}
"""Reasons that concern the host rather than the URL, unless the head of an answer had arrived."""


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
        self._headers = {"User-Agent": f"{AGENT}/0.1{contact}", "Accept-Encoding": ACCEPT_ENCODING}

    async def __aenter__(self) -> Fetcher:
        connector = TolerantConnector(
            limit=0,  # limited by our own semaphores: waiting for them does not count against a URL's deadline
            socket_factory=GuardedSocketFactory(self._allowed),
            resolver=CachingResolver(),
            use_dns_cache=False,
            ssl=_tls(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would connect for us, past the guard
            auto_decompress=False,  # aiohttp gives up on wrong labels, and on encodings that are applied twice
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEAD_BYTES,
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
        target: WebURL | Failure = parse_url(url)
        for _ in range(self.config.max_redirects + 1):
            if isinstance(target, Failure):
                return target
            outcome = await self._ask(target, target.target, ACCEPT, claim, deadline)
            if _reason(outcome) in _SPELLING_REFUSED and target.browser_target != target.target:
                outcome = await self._ask(target, target.browser_target, ACCEPT, claim, deadline)
            elif _reason(outcome) == "http_406":  # some servers compare Accept with a type that is none of an image
                outcome = await self._ask(target, target.target, "*/*", claim, deadline)
            if not isinstance(outcome, str):
                return outcome
            target = _redirect(parse_url(outcome, base=target))
        return download_failure("too_many_redirects", f"more than {self.config.max_redirects} redirects")

    async def _ask(
        self, url: WebURL, target: str, accept: str, claim: Claim | None, deadline: _Deadline
    ) -> Fetched | Failure | _Retry | str:
        """One request, once its host and a connection are free; for a redirect returns the value of its Location header.

        Args:
            target: path and query as they are sent.
        """
        host = self._hosts.host(f"{url.host}:{url.port}")
        async with host.turns:
            refusal = await host.wait_until_allowed()
            if refusal is not None:
                return refusal
            async with self._connections:
                return await self._request(url, target, accept, host, claim, deadline)

    async def _request(
        self, url: WebURL, target: str, accept: str, host: Host, claim: Claim | None, deadline: _Deadline
    ) -> Fetched | Failure | _Retry | str:
        outcome: Failure | _Retry
        answered = False
        headers = {"Host": url.authority, "Accept": accept}
        # yarl would quote it again and drop an empty query: so the query is given to it as a part of the path, quoted already.
        address = URL.build(scheme=url.scheme, authority=url.authority, path=target, encoded=True)
        try:
            async with deadline, self._session.get(address, headers=headers, allow_redirects=False) as response:
                answered = True
                host.answered()
                if response.status in _REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                return await self._read(response, host, claim, deadline)
        except TimeoutError as error:
            if deadline.left_s <= 0:
                outcome = download_failure("timeout", f"no complete answer within {self.config.total_timeout_s:g} s")
            else:
                outcome = download_failure(
                    "timeout", " ".join(str(error).split()) or f"silent for {self.config.read_timeout_s:g} s"
                )
        except Exception as error:  # whatever one answer provokes in the client must not fail the other rows
            outcome = _explain(error)
        if not answered and _reason(outcome) in _NO_ANSWER:
            self._hosts.no_answer(host)
        return outcome

    async def _read(
        self, response: aiohttp.ClientResponse, host: Host, claim: Claim | None, deadline: _Deadline
    ) -> Fetched | Failure | _Retry:
        """Checks status and headers, then reads the body up to the limit."""
        refusal = _check_status(response, host)
        if refusal is not None:
            return refusal
        directive = opt_out(response.headers.getall("X-Robots-Tag", []))
        if directive is not None:
            return download_failure("robots", f"X-Robots-Tag: {directive}")
        limit = self.config.max_bytes
        if response.content_length is not None and response.content_length > limit:
            return download_failure("too_large", f"Content-Length {response.content_length} is over {limit} bytes")
        body, broken = bytearray(), None
        try:
            while chunk := await response.content.readany():
                await _grow(claim, len(chunk), deadline)
                body += chunk
                if len(body) > limit:
                    return download_failure("too_large", f"the body is over {limit} bytes")
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            broken = error
        try:
            whole = decompress(bytes(body), response.headers.getall("Content-Encoding", []), limit)
        except TooLargeError:
            return download_failure("too_large", f"the decompressed body is over {limit} bytes")
        except BrokenBodyError as error:
            return download_failure("bad_answer", str(error)) if broken is None else _explain(broken)
        if broken is not None and not is_whole_image(whole):
            return _explain(broken)
        if not whole:
            return download_failure("empty_body", "the answer has no body")
        await _grow(claim, max(0, len(whole) - len(body)), deadline)
        return Fetched(whole)


async def _grow(claim: Claim | None, count: int, deadline: _Deadline) -> None:
    """Adds bytes to a claim; the deadline stands still while it has to wait."""
    if claim is not None and not claim.try_grow(count):
        with deadline.stopped():
            await claim.grow(count)


def _check_status(response: aiohttp.ClientResponse, host: Host) -> Failure | _Retry | None:
    """Returns None if the body may be an image: for every 2xx that has a whole body."""
    status = response.status
    part = status == 206 and not _covers_all(response.headers.getall("Content-Range", [""])[0])
    if 200 <= status < 300 and status not in _WITHOUT_BODY and not part:
        return None
    failure = download_failure(f"http_{status}", f"HTTP status {status}")
    if status in _TEMPORARY or status >= 500:
        pause_s = _retry_after(response)
        if pause_s is not None:
            host.wants_pause(min(pause_s, RETRY_AFTER_CAP_S))
        return _Retry(failure, pause_s)
    return failure


def _covers_all(content_range: str) -> bool:
    """True if a Content-Range is missing, or states the whole: `bytes 0-99/100`."""
    found = re.fullmatch(r"\s*bytes\s+0-(\d{1,18})/(\d{1,18})\s*", content_range, re.IGNORECASE)
    return not content_range or (found is not None and int(found[1]) + 1 == int(found[2]))


@cache
def _tls() -> ssl.SSLContext:
    """Verifies certificates, and connects to every server that browsers connect to.

    OpenSSL refuses servers that cannot renegotiate securely, Python also those without forward secrecy and, from 3.13 on,
    certificates that lack an extension of RFC 5280; browsers do none of this. Many servers close connections without TLS's
    farewell.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_ciphers("DEFAULT")
    context.options |= _OP_LEGACY_SERVER_CONNECT | ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


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


def _redirect(target: WebURL | Failure) -> WebURL | Failure:
    """The target of a redirect; a bad one is the server's fault, not the table's."""
    if isinstance(target, WebURL):
        return target
    reason = "bad_answer" if target.reason == "bad_url" else target.reason
    return download_failure(reason, f"the Location of a redirect: {target.message}")


def opt_out(values: list[str]) -> str | None:
    """The directive of X-Robots-Tag that forbids our use, if any. In a value, `name:` is the agent that what follows is for."""
    for value in values:
        ours = True
        for part in value.lower().split(","):
            scope = _SCOPE.match(part)
            if scope and scope[1] not in _DIRECTIVES_WITH_VALUE:
                ours, part = scope[1] in (AGENT, "*"), part[scope.end() :]
            found = next((word for word in re.split(r"[;\s]+", part) if word in _OPT_OUT), None)
            if ours and found:
                return found
    return None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a Retry-After header, which may also be a date; None, for the default back-off, if it is neither."""
    value = response.headers.getall("Retry-After", [""])[0]
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return None


def download_failure(reason: str, message: str) -> Failure:
    """A failure with a message in valid UTF-8: headers may hold other bytes, which parquet would refuse."""
    return Failure("failed_to_download", reason, message.encode("utf-8", "replace").decode())


def _reason(outcome: object) -> str:
    """The reason of a failure; empty for any other outcome."""
    failure = outcome.failure if isinstance(outcome, _Retry) else outcome
    return failure.reason if isinstance(failure, Failure) else ""


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
        return download_failure("bad_answer", f"not an HTTP answer: {' '.join(error.message.split())[:200]}")
    if isinstance(error, BrokenAnswerError):
        return download_failure("bad_answer", text)
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Retry(download_failure("connection_lost", "the connection ended before the body did"))
    if isinstance(error, aiohttp.ClientError | OSError):
        return _Retry(download_failure("connection_lost", text))
    if isinstance(error, ValueError):
        return download_failure("bad_url", text)
    return download_failure("error", f"{type(error).__name__}: {text}")

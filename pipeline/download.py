"""One URL to one body, or to a reason why not.

The seam is `Fetcher.fetch(url) -> Fetched | Failure`. Behind it: aiohttp with the address guard in its connector, a deadline
for the whole URL and one for each read, a cap on the decoded body, redirects followed by hand so that each hop is checked, and
no retry where it would be impolite.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from yarl import URL

from pipeline.address_guard import REFUSED, GuardedSocketFactory, parse_networks
from pipeline.config import FetchConfig
from pipeline.types import Failure, Fetched

AGENT = "rayclip"
ATTEMPTS = 3
FIRST_DELAY_S = 0.5
RETRY_AFTER_CAP_S = 10.0
CHUNK_BYTES = 1 << 16
PER_HOST = 16
"""Connections to one host at a time."""

_OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "noml", "none"}
_DIRECTIVES_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
_REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True)
class _Retry:
    """An answer that may be better in a moment."""

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
            limit=self.config.concurrency,
            limit_per_host=PER_HOST,
            socket_factory=GuardedSocketFactory(self._allowed),
            ttl_dns_cache=300,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would dial in our stead, past the guard
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.config.read_timeout_s, sock_read=self.config.read_timeout_s
            ),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched | Failure:
        """The body of a URL within `total_timeout_s`, retries and redirects included. Never raises for what a URL does."""
        try:
            async with asyncio.timeout(self.config.total_timeout_s):
                return await self._with_retries(url)
        except TimeoutError:
            return _failed("timeout", f"no complete answer within {self.config.total_timeout_s:g} s")

    async def _with_retries(self, url: str) -> Fetched | Failure:
        delay_s = FIRST_DELAY_S
        for attempt in itertools.count(1):
            outcome = await self._once(url)
            if not isinstance(outcome, _Retry):
                return outcome
            if attempt == ATTEMPTS:
                return outcome.failure
            wait_s = delay_s * random.uniform(0.5, 1.5) if outcome.after_s is None else outcome.after_s
            await asyncio.sleep(min(wait_s, RETRY_AFTER_CAP_S))
            delay_s *= 2
        raise AssertionError("unreachable")

    async def _once(self, url: str) -> Fetched | Failure | _Retry:
        """One attempt: every redirect, then the body."""
        target: URL | Failure = parse_url(url)
        for _ in range(self.config.max_redirects + 1):
            if isinstance(target, Failure):
                return target
            try:
                async with self._session.get(target, allow_redirects=False) as response:
                    if response.status in _REDIRECTS and "Location" in response.headers:
                        target = parse_url(response.headers["Location"], base=target)
                        continue
                    return await self._read(response)
            except Exception as error:  # what one answer provokes in a client must not cost the other rows
                return _explain(error)
        return _failed("too_many_redirects", f"more than {self.config.max_redirects} redirects")

    async def _read(self, response: aiohttp.ClientResponse) -> Fetched | Failure | _Retry:
        """Status and headers first, then the body up to the cap."""
        if response.status != 200:
            failure = _failed(f"http_{response.status}", f"HTTP status {response.status}")
            if response.status == 429 or response.status >= 500:
                return _Retry(failure, _retry_after(response))
            return failure
        directive = opt_out(response.headers.getall("X-Robots-Tag", []))
        if directive is not None:
            return _failed("robots", f"X-Robots-Tag: {directive}")
        limit = self.config.max_bytes
        if response.content_length is not None and response.content_length > limit:
            return _failed("too_large", f"Content-Length {response.content_length} is over {limit} bytes")
        body = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            body += chunk
            if len(body) > limit:
                return _failed("too_large", f"the body is over {limit} bytes")
        if not body:
            return _failed("empty_body", "the answer has no body")
        return Fetched(bytes(body))


def parse_url(url: str, base: URL | None = None) -> URL | Failure:
    """An absolute http or https URL, or why it is none."""
    if re.search(r"[\x00-\x20\\\x7f]", url.strip()):
        return _failed("bad_url", "the URL holds a control character, a space or a backslash")
    try:
        parsed = URL(url.strip()) if base is None else base.join(URL(url.strip()))
        host = parsed.host
        parsed.port  # noqa: B018 (raises for a port that is no number)
    except (ValueError, TypeError, UnicodeError) as error:
        return _failed("bad_url", f"not a URL: {error}")
    if not parsed.scheme:
        return _failed("bad_url", "the URL has no scheme")
    if parsed.scheme not in ("http", "https"):
        return _failed("unknown_scheme", f"{parsed.scheme}: is not fetched; only http and https are")
    if not host:
        return _failed("bad_url", "the URL has no host")
    if parsed.user is not None or parsed.password is not None:
        return _failed("bad_url", "the URL holds a user name or a password")
    return parsed


def opt_out(values: list[str]) -> str | None:
    """The directive of X-Robots-Tag that says no to us, if one does. A value may be scoped to another agent by `name:`."""
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
    """Seconds of a Retry-After header; the date form is answered with our own back-off."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(response.headers["Retry-After"]))
    return None


def _failed(reason: str, message: str) -> Failure:
    """A failure; headers may hold bytes that are no text, which a parquet file would refuse."""
    return Failure("failed_to_download", reason, message.encode("utf-8", "replace").decode())


def _explain(error: Exception) -> Failure | _Retry:
    """aiohttp's exceptions as reasons. Order: subclasses first."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if REFUSED in text:
        return _failed("address_refused", text)
    if isinstance(error, aiohttp.InvalidURL):
        return _failed("bad_url", text)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _failed("dns", text)
    if isinstance(error, aiohttp.ClientSSLError):
        return _failed("tls", text)
    if isinstance(error, aiohttp.ServerTimeoutError | TimeoutError):
        return _failed("timeout", text)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _failed("connect", text)
    if isinstance(error, aiohttp.ClientResponseError):
        return _failed("bad_answer", text)
    if isinstance(error, aiohttp.ClientError | OSError):
        return _Retry(_failed("connection_lost", text))
    if isinstance(error, ValueError):
        return _failed("bad_url", text)
    return _failed("error", f"{type(error).__name__}: {text}")

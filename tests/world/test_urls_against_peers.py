"""Random URLs and redirects: what arrives at the server is what was written, and what curl, httpx and urljoin make of it."""

import asyncio
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from urllib.parse import quote, urljoin

import httpx
import pytest

from pipeline.config import FetchConfig
from pipeline.fetch.http_client import Fetched, Fetcher
from pipeline.fetch.web_url import WebURL, parse_url
from tests.support.raw_server import RawServer, raw_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"
PLAIN = "abcXYZ019-._~!$&'()*+,;=:@%"
ODD = '"<>^`{|}[]\\'
TEXT = "é日👍\u00a0"


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as site:
        site.otherwise = OK
        yield site


def piece(rng: random.Random, letters: str, longest: int = 8) -> str:
    """A few characters, percent-encodings in either case among them."""
    parts = []
    for _ in range(rng.randrange(longest)):
        encoded = f"%{rng.randrange(256):02x}"
        parts.append(rng.choice([rng.choice(letters), rng.choice(letters), encoded, encoded.upper()]))
    return "".join(parts)


def random_target(rng: random.Random, odd: bool = True) -> str:
    """Path and query, with dot segments, empty segments and an empty query now and then."""
    letters = PLAIN + TEXT + (ODD if odd and rng.random() < 0.3 else "")
    segments = [rng.choice(["", ".", "..", "%2e", "%2E."]) if rng.random() < 0.15 else piece(rng, letters) for _ in range(4)]
    path = "/" + "/".join(segments[: rng.randrange(5)])
    # A path of two slashes would be another host where there is none before it.
    path = re.sub(r"^/[/\\]+", "/", path)
    return path + rng.choice(["", "", "?", f"?{piece(rng, letters + '/?', 20)}"]) + rng.choice(["", "", "#", "#a?b/é"])


def as_sent(target: str) -> str:
    """The written rule: without the fragment, non-ASCII percent-encoded as UTF-8, all else as it is."""
    return "".join(letter if letter.isascii() else quote(letter) for letter in target.partition("#")[0])


def fetch_all(urls: list[str]) -> None:
    config = FetchConfig(
        allow_addresses=("127.0.0.1/32",), attempts=1, total_timeout_s=60, read_timeout_s=60, host_concurrency=8
    )

    async def all_of_them() -> None:
        async with Fetcher(config) as fetcher:
            for outcome in await asyncio.gather(*(fetcher.fetch(url) for url in urls)):
                assert outcome == Fetched(b"image")

    asyncio.run(all_of_them())


def check_on_the_wire(server: RawServer, seed: int, count: int) -> None:
    """Asks for random URLs, and for random redirects to them."""
    rng = random.Random(seed)
    written = [random_target(rng) for _ in range(count)]
    server.requests.clear()
    server.keep_open = {as_sent(target) for target in written}
    fetch_all([server.address + target for target in written])
    assert sorted(server.targets) == sorted(map(as_sent, written))

    server.requests.clear()
    hops = {f"/hop/{number}": target for number, target in enumerate(written)}
    server.answers = {
        hop: f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {target}\r\n\r\n".encode() for hop, target in hops.items()
    }
    server.keep_open |= set(hops)
    fetch_all([server.address + hop for hop in hops])
    server.answers = {}
    assert sorted(target for target in server.targets if not target.startswith("/hop/")) == sorted(map(as_sent, written))


def check_against_httpx(seed: int, count: int) -> None:
    """Compares the spelling of browsers with httpx, which follows the same standard but for the characters named here."""
    rng = random.Random(seed)
    for _ in range(count):
        target = random_target(rng, odd=False)
        ours = parse_url(f"http://Example.COM:80{target}")
        assert isinstance(ours, WebURL)
        # httpx leaves %2e alone, drops an empty query and the slash that a last dot segment leaves, quotes a % without two
        # digits, and does not quote ' in a query.
        if re.search(r"%2e|\?(#|$)|%(?![0-9a-f]{2})|/\.\.?([?#]|$)", target, re.IGNORECASE):
            continue
        theirs = httpx.URL(f"http://Example.COM:80{target}")
        assert (ours.host, ours.authority) == (theirs.host, theirs.netloc.decode())
        assert ours.browser_target.replace("%27", "'") == theirs.raw_path.decode().replace("%27", "'"), target


def check_against_urljoin(seed: int, count: int) -> None:
    """Compares the resolution of relative references with the standard library's."""
    rng = random.Random(seed)
    letters = "abc%2F+,=~"  # not the semicolon, which urljoin drops with an empty reference
    for _ in range(count):
        base = "http://host:8080/" + "/".join(piece(rng, letters) or "x" for _ in range(rng.randrange(4))) + "?q"
        base = re.sub("%2e", "%2d", base, flags=re.IGNORECASE)  # which is a dot to browsers alone
        reference = "/".join(rng.choice(["..", ".", "a", "b%2F", "c;d"]) for _ in range(rng.randrange(5)))
        reference = rng.choice(["", "./", "../", "?s", "/x/"]) + reference + rng.choice(["", "?r=%2F", "#f"])
        parsed = parse_url(base)
        assert isinstance(parsed, WebURL)
        ours = parse_url(reference, base=parsed)
        theirs = parse_url(urljoin(base, reference))
        assert isinstance(ours, WebURL)
        assert isinstance(theirs, WebURL)
        assert ours.browser_target == theirs.browser_target, (base, reference)


def check_against_curl(server: RawServer, seed: int, count: int) -> None:
    """Compares what we send with what curl sends, byte for byte."""
    rng = random.Random(seed)
    written = [random_target(rng) for _ in range(count)]
    server.requests.clear()
    server.keep_open = set()
    for start in range(0, count, 2000):
        lines = []
        for number, target in enumerate(written[start : start + 2000]):
            escaped = (server.address + target).replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'url = "{escaped}"\nheader = "X-Number: {start + number}"\noutput = "/dev/null"\nnext\n')
        options = "globoff\npath-as-is\nsilent\n"
        config = "".join(options + line for line in lines).removesuffix("next\n")
        subprocess.run(["curl", "-K", "-"], input=config.encode(), capture_output=True, check=False, timeout=600)
    theirs = {}
    for request in server.requests:
        number = re.search(rb"X-Number: (\d+)", request)
        assert number is not None
        line = request.split(b"\r\n")[0].removeprefix(b"GET ").removesuffix(b" HTTP/1.1")
        theirs[int(number[1])] = line
    assert len(theirs) > 0.99 * count
    differing = [
        (written[number], sent) for number, sent in theirs.items() if as_curl(written[number].encode()) != as_curl(sent)
    ]
    assert not differing, f"{len(differing)} differ, such as {differing[:5]}"
    server.requests.clear()
    server.keep_open = {as_sent(target) for target in written}
    fetch_all([server.address + written[number] for number in theirs])
    assert sorted(server.targets) == sorted(as_sent(written[number]) for number in theirs)


def as_curl(target: bytes) -> str:
    """Without the fragment, and without what curl does otherwise: it quotes in lower case, and may drop an empty query."""
    sent = target.partition(b"#")[0]
    return "".join(chr(byte) if byte < 0x80 else f"%{byte:02x}" for byte in sent).removesuffix("?")


def test_random_urls_and_redirects_travel_byte_for_byte(server):
    check_on_the_wire(server, seed=0, count=300)


def test_random_urls_are_spelled_as_httpx_spells_them():
    check_against_httpx(seed=0, count=500)


def test_random_references_are_resolved_as_the_standard_library_does():
    check_against_urljoin(seed=0, count=500)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_urls_and_redirects_travel_byte_for_byte(server, seed):
    for part in range(10):
        check_on_the_wire(server, seed=100 * seed + part, count=2000)
    check_against_httpx(seed, count=20_000)
    check_against_urljoin(seed, count=20_000)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_urls_arrive_as_from_curl(server, seed):
    for part in range(10):
        check_against_curl(server, seed=100 * seed + part, count=2000)

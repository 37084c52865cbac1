"""A URL is asked for as it is written, and what a browser opens is opened."""

import asyncio
from collections.abc import Iterator

import pytest

from pipeline.config import FetchConfig
from pipeline.errors import Failure
from pipeline.fetch.http_client import Fetched, Fetcher
from tests.support.raw_server import RawServer, raw_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as site:
        yield site


@pytest.fixture
def signing(server: RawServer) -> RawServer:
    """A server that compares the raw request line with a signature, and refuses every other spelling."""
    server.answers.clear()
    server.requests.clear()
    server.otherwise = FORBIDDEN
    return server


def fetch(url: str) -> Fetched | Failure:
    config = FetchConfig(allow_addresses=("127.0.0.0/8", "::1/128"), attempts=1, total_timeout_s=5, read_timeout_s=2)

    async def one() -> Fetched | Failure:
        async with Fetcher(config) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(one())


def redirect(location: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"


LISTED = ["/s1gnature/http%3A%2F%2Fexample.org%2Fa.jpg", "/a%28b%29.jpg", "/a.jpg?c=1%2C2&e=%21"]
FURTHER = [
    "/?email=smooth%40criminal",  # aio-libs/aiohttp 1725
    "/506e.jpg?AWSAccessKeyId=AKIA&Expires=1731123498&Signature=qZ0ARjdg1ISat42nhi2Xns%2BPP2g%3D",  # aio-libs/aiohttp 9721
    "/logos/512_vc%26p.jpg?X-Goog-Credential=api%40x.com%2F20210302%2Fauto",  # aio-libs/aiohttp 5512
    "/dd36~tplv-dy:q75.webp?x-signature=c52Ptq%2FkUlu%3D&s=PUBLISH",  # aio-libs/aiohttp 7393
    "/?response-content-type=application%2Fgzip",  # aio-libs/aiohttp 7222
    "/foo%27bar%2Etxt?Signature=Y",  # aio-libs/aiohttp 4307
    "/?a=%25s3",  # aio-libs/aiohttp 1474
    "/image.jpg?",  # aio-libs/yarl 222
]
VARIANTS = [
    *["/%7Euser/%41%5f.jpg", "/lower%c3%a9/upper%C3%A9", "//double//slash.jpg", "/a;b=c/d+e.jpg?f+g;h", "/100%/%zz?p=%&q=%4"],
    *[
        "/a/b%2f..%2Fc.jpg",
        "/%2e%2E%2f/x",
        "/a|b{c}.jpg?d=[e]|{f}",
        "/'quoted'(1)!*.jpg?'x'",
        "/?a=b?c=/d:e@f",
        "/a@b:c,d=e$f&g.jpg",
    ],
    *["/%00%0A%20.jpg", '/a"b<c>d^e`f.jpg?"<>`', f"/{'long/' * 2000}a.jpg?{'q=%2C&' * 2000}", "/a?#", "/%5B%5D?%5B0%5D=%7C"],
]


@pytest.mark.parametrize("target", LISTED + FURTHER + VARIANTS)
def test_path_and_query_travel_byte_for_byte(signing, target):
    sent = target.partition("#")[0]
    assert fetch(signing.put(sent, OK) + target.removeprefix(sent)) == Fetched(b"image")
    assert signing.targets == [sent]


@pytest.mark.parametrize("target", LISTED + FURTHER + VARIANTS)
def test_a_redirect_is_followed_byte_for_byte(signing, target):
    sent = target.partition("#")[0]
    signing.put(sent, OK)
    location = target if not target.startswith("//") else signing.address + target
    assert fetch(signing.put("/hop", redirect(location.encode()))) == Fetched(b"image")
    assert signing.targets == ["/hop", sent]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/my picture.jpg?a b", "/my%20picture.jpg?a%20b"),
        ("/bücher/日本.jpg?ü=é", "/b%C3%BCcher/%E6%97%A5%E6%9C%AC.jpg?%C3%BC=%C3%A9"),
        ("/a%20b c.jpg", "/a%20b%20c.jpg"),
        ("/a\x01b\x7f.jpg", "/a%01b%7F.jpg"),
        ("/in/the\n  middle\t.jpg ", "/in/the%20%20middle.jpg"),  # gocolly/colly PR 589
        ("/a\u00a0.jpg", "/a%C2%A0.jpg"),
        ("/a.jpg#fragment?x", "/a.jpg"),
        ("?query", "/?query"),
        ("#fragment", "/"),
        ("", "/"),
    ],
)
def test_only_what_would_break_the_request_line_is_quoted(signing, written, sent):
    assert fetch(signing.put(sent, OK).removesuffix(sent) + written) == Fetched(b"image")
    assert signing.targets == [sent]


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        (b"/my picture.jpg", "/my%20picture.jpg"),  # snoyberg/http-client 83
        ("/fa/اعزام".encode(), "/fa/%D8%A7%D8%B9%D8%B2%D8%A7%D9%85"),  # scrapy/scrapy 2321
        (b"/synspr\xf8ve", "/synspr%F8ve"),  # aio-libs/aiohttp 10047
        (b"//HOST/?\xc5\xa0", "/?%C5%A0"),  # psf/requests 3959
        (b"http:///HOST/x.jpg", "/x.jpg"),  # curl/curl 791
        (b"///HOST/x.jpg", "/x.jpg"),  # scrapy/scrapy PR 4042
        (b"http:/x.jpg", "/x.jpg"),  # jhy/jsoup PR 2580
        (b"http:x.jpg", "/folder/x.jpg"),
        (b"deutsch/", "/folder/deutsch/"),  # jnunemaker/httparty 377
        (b"../up.jpg", "/up.jpg"),
        (b"./a/.././b.jpg", "/folder/b.jpg"),
        (b"?next=http%3A//example.com/", "/folder/hop?next=http%3A//example.com/"),  # aio-libs/aiohttp 1466
        (b"HTTP://HOST:/UP.jpg#part", "/UP.jpg"),
        (b"  /spaces.jpg  ", "/spaces.jpg"),
        (b"\\\\HOST\\back.jpg", "/back.jpg"),
    ],
)
def test_a_location_is_resolved_as_browsers_do(signing, location, sent):
    host = signing.address.removeprefix("http://").encode()
    signing.put(sent, OK)
    if b"HOST:" in location:  # an empty port is the default one, which nothing listens on here
        location = location.replace(b"HOST:", host)
    location = location.replace(b"HOST", host)
    assert fetch(signing.put("/folder/hop", redirect(location))) == Fetched(b"image")
    assert signing.targets[-1] == sent


def test_several_redirects_of_different_kinds_are_followed(signing):
    signing.put("/b%2Fc d".replace(" ", "%20"), redirect(b"e.jpg?#x"))
    signing.put("/e.jpg?", OK)
    assert fetch(signing.put("/a", redirect(b"/b%2Fc d"))) == Fetched(b"image")
    assert signing.targets == ["/a", "/b%2Fc%20d", "/e.jpg?"]


@pytest.mark.parametrize(
    ("written", "opened"),
    [
        ("/../a/b/../c/./d.jpg", "/a/c/d.jpg"),  # sindresorhus/normalize-url PR 3
        ("/hello/%2e%2E/foobar", "/foobar"),  # curl/curl 16869
        ("/Clearing/Images\\brnbagbk.gif", "/Clearing/Images/brnbagbk.gif"),  # ArchiveTeam/grab-site 199
        ("/QUICKFIND/..\\SHIPDETAILS\\a.jpg", "/SHIPDETAILS/a.jpg"),  # ArchiveTeam/wpull 377
        ('/a"b{c}^.jpg?d="<e>\'', "/a%22b%7Bc%7D%5E.jpg?d=%22%3Ce%3E%27"),
        ("\\a.jpg", "/a.jpg"),
    ],
)
def test_what_a_server_refuses_as_written_is_asked_for_as_browsers_spell_it(signing, written, opened):
    assert fetch(signing.put(opened, OK).removesuffix(opened) + written) == Fetched(b"image")
    assert signing.targets[-1] == opened
    assert len(signing.targets) <= 2


def test_a_url_that_browsers_would_not_change_is_asked_for_once(signing):
    outcome = fetch(signing.address + "/plain%2F/a.jpg?b=c|d")
    assert isinstance(outcome, Failure)
    assert outcome.reason == "http_403"
    assert len(signing.targets) == 1


@pytest.mark.parametrize(
    "form",
    [
        *["HTTP://127.0.0.1:{port}/x", "http:/127.0.0.1:{port}/x", "http:127.0.0.1:{port}/x", "http:////127.0.0.1:{port}/x"],
        *[
            "//127.0.0.1:{port}/x",
            "http:\\\\127.0.0.1:{port}\\x",
            "\x00 \thttp://127.0.0.1:{port}/x\r\n\x1f",
            "http://@127.0.0.1:{port}/x",
        ],
        *["http://127.1:{port}/x", "http://0x7F000001:{port}/x", "http://0177.0.0.1:{port}/x", "http://2130706433:{port}/x"],
        *[
            "http://127.0.0.1.:{port}/x",
            "http://127.0.0.1:000{port}/x",
            "http://%31%32%37.0.0.1:{port}/x",
            "h\tttp://127.0.0.1:{port}/x",
        ],
        *["http://１２７。０．０.1:{port}/x", "http://127.0.0.1:{port}/x#a b"],
    ],
)
def test_every_spelling_of_scheme_and_host_that_a_browser_opens_is_opened(signing, form):
    port = signing.address.rpartition(":")[2]
    signing.put("/x", OK)
    assert fetch(form.format(port=port)) == Fetched(b"image")
    assert b"\r\nHost: 127.0.0.1:" + port.encode() + b"\r\n" in signing.requests[-1]


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("LocalHost", "localhost"),
        ("localhost.", "localhost."),
        ("bücher.localhost", "xn--bcher-kva.localhost"),
        ("straße.localhost", "xn--strae-oqa.localhost"),
        ("👍👍.localhost", "xn--yp8ha.localhost"),  # JoshData/python-email-validator 12
        ("☃.localhost", "xn--n3h.localhost"),  # kjd/idna 136
        ("xn--lw8h.xn--9s9h.localhost", "xn--lw8h.xn--9s9h.localhost"),  # kjd/idna 255
        ("my_bucket.localhost", "my_bucket.localhost"),
        ("-a-.localhost", "-a-.localhost"),
    ],
)
def test_names_are_sent_as_the_dns_holds_them(signing, host, sent, monkeypatch):
    class Everywhere:
        """A resolver for which every name is this machine."""

        async def resolve(self, name, port=0, family=0):
            return [{"hostname": name, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

        async def close(self):
            pass

    monkeypatch.setattr("pipeline.fetch.http_client.CachingResolver", Everywhere)
    port = signing.address.rpartition(":")[2]
    signing.put("/x", OK)
    assert fetch(f"http://{host}:{port}/x") == Fetched(b"image")
    assert f"\r\nHost: {sent}:{port}\r\n".encode() in signing.requests[-1]


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://",
            "http:// /x",
            "http://a b/",
            "http://[::1",
            "http://[::1%25lo]/",
            "http://a:99999/",
            "http://a:8o/",
            "http://%zz/",
        ],
        *[
            "http://a%2Fb/",
            "http://256.1.1.1/",
            "http://1.2.3.4.5/",
            "http://a.0x/0",
            "http://\u00ad/",
            f"http://{'a' * 64}.com/",
        ],
        *["example.com/a.jpg", "/a.jpg", "", "   ", "http://user:password@127.0.0.1/", "http:\\\\user:password@127.0.0.1/"],
    ],
)
def test_what_no_browser_opens_is_a_bad_url(url):
    outcome = fetch(url)
    assert isinstance(outcome, Failure)
    assert outcome.reason == "bad_url"
    assert "password@" not in outcome.message


@pytest.mark.parametrize("location", [b"https://:443/", b"http://user:password@127.0.0.1/", b"http://[x]/"])
def test_a_redirect_to_nowhere_is_the_fault_of_the_server(signing, location):
    outcome = fetch(signing.put("/hop", redirect(location)))  # encode/httpx PR 774
    assert isinstance(outcome, Failure)
    assert outcome.reason == "bad_answer"
    assert outcome.message.startswith("the Location of a redirect: ")


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "0177.0.0.2", "0x7f000002", "2130706434", "１２７.０.０.２", "[::ffff:127.0.0.2]"]
)
def test_no_spelling_of_a_private_address_gets_past_the_guard_after_a_redirect(signing, host):
    port = signing.address.rpartition(":")[2]
    config = FetchConfig(allow_addresses=("127.0.0.1/32",), attempts=1, total_timeout_s=5)
    signing.put("/hop", redirect(f"http://{host}:{port}/secret".encode()))

    async def one() -> Fetched | Failure:
        async with Fetcher(config) as fetcher:
            return await fetcher.fetch(signing.address + "/hop")

    outcome = asyncio.run(one())
    assert isinstance(outcome, Failure)
    assert outcome.reason == "address_refused"
    assert signing.targets == ["/hop"]

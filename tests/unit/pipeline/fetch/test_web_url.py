"""parse_url(text) gives the parts of an address as browsers read them, with path and query as written."""

import pytest

from pipeline.errors import Failure
from pipeline.fetch.web_url import WebURL, parse_url

BASE = WebURL("https", "example.org", 8443, "/a/b/c.jpg", "q=1")


def parsed(text: str, base: WebURL | None = None) -> WebURL:
    url = parse_url(text, base)
    assert isinstance(url, WebURL), url
    return url


def test_an_address_is_split_into_its_parts():
    url = parsed("HTTPS://Example.ORG:443/%7Ea/../b?c=%2F#d")
    assert url == WebURL("https", "example.org", 443, "/%7Ea/../b", "c=%2F")
    assert url.authority == "example.org"
    assert url.target == "/%7Ea/../b?c=%2F"
    assert url.browser_target == "/b?c=%2F"


def test_the_authority_names_a_port_that_is_not_the_default_one():
    assert parsed("http://h:443").authority == "h:443"
    assert parsed("https://h:80/").authority == "h:80"
    assert [parsed(f"http://h:{port}/").port for port in ("", "0", "000080", "65535")] == [80, 0, 80, 65535]
    assert parsed("http://[2001:DB8::0:1]:8080/").authority == "[2001:db8::1]:8080"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("d.jpg", "https://example.org:8443/a/b/d.jpg"),
        ("/d.jpg", "https://example.org:8443/d.jpg"),
        ("../../../d.jpg", "https://example.org:8443/d.jpg"),
        ("?r", "https://example.org:8443/a/b/c.jpg?r"),
        ("", "https://example.org:8443/a/b/c.jpg?q=1"),
        ("#part", "https://example.org:8443/a/b/c.jpg?q=1"),
        ("//other/x", "https://other/x"),
        ("https:d.jpg", "https://example.org:8443/a/b/d.jpg"),
        ("https:/d.jpg", "https://example.org:8443/d.jpg"),
        ("https://other", "https://other/"),
        ("http:other/x", "http://other/x"),
        ("HTTP:///other/x", "http://other/x"),
    ],
)
def test_a_reference_is_resolved(reference, expected):
    url = parsed(reference, BASE)
    assert f"{url.scheme}://{url.authority}{url.target}" == expected


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("ftp://h/x", "unknown_scheme", "ftp: is not fetched"),
        ("DATA:image/png;base64,AA", "unknown_scheme", "data: is not fetched"),
        ("h/x.jpg", "bad_url", "has no scheme"),
        ("http://", "bad_url", "has no host"),
        ("http://h:8o/", "bad_url", "port"),
        ("http://[::1", "bad_url", "brackets"),
        ("http://[1]/", "bad_url", "IPv6"),
        ("http://1.2.3.999/", "bad_url", "IPv4"),
        ("http://%ff/", "bad_url", "cannot be a name"),
        ("http://a%00b/", "bad_url", "character"),
        ("http://u:p@h/", "bad_url", "user name or a password"),
    ],
)
def test_what_is_no_address_says_why(text, reason, says):
    failure = parse_url(text)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.reason) == ("failed_to_download", reason)
    assert says in failure.message


def test_bytes_that_are_not_utf8_stay_those_bytes():
    location = b"/caf\xe9?\xff".decode("utf-8", "surrogateescape")
    assert parsed(location, BASE).target == "/caf%E9?%FF"
    assert parsed("http://h/\ud800").target == "/%EF%BF%BD"


def test_a_host_of_many_digits_takes_no_time():
    assert isinstance(parse_url(f"http://{'9' * 100_000}/"), Failure)
    assert isinstance(parse_url(f"http://h:{'9' * 100_000}/"), Failure)

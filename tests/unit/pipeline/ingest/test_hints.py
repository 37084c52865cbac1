"""What to type, for each reason that a row can have."""

import ast
from pathlib import Path

import pytest
import yaml

from pipeline.config import FetchConfig
from pipeline.ingest.hints import BY_ROWS, CONCERNED, DROPPED, FIXED, FailedRow, hint, is_concerned, may_concern

ROOT = Path(__file__).parents[4]
FETCH = FetchConfig()
PASSED_ON = {
    "http_client.py": {"http_{}", "bad_answer", "bad_url", "unknown_scheme"},
    "image.py": {"not_an_image", "unsupported_format", "decode"},
    "web_url.py": {"bad_url", "unknown_scheme"},
}
"""Reasons in files that take them from a variable: a status, a redirect's reason, `refusal`, the reason of an error."""


def reasons_of(path: Path) -> set[str]:
    """Reasons that a module gives to failures."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        place = {"Failure": 1, "download_failure": 0}.get(node.func.id)
        if place is None:
            continue
        argument = node.args[place] if len(node.args) > place else None
        if isinstance(argument, ast.Constant):
            found.add(argument.value)
        else:
            assert path.name in PASSED_ON, f"{path.name}:{node.lineno}: a reason that this test cannot read"
    return found


def all_reasons() -> set[str]:
    paths = [path for folder in ("fetch", "transform", "ingest") for path in (ROOT / "pipeline" / folder).glob("*.py")]
    found = set().union(*map(reasons_of, paths), *PASSED_ON.values()) - {"http_{}"}
    return found | {f"http_{status}" for status in (204, 206, 302, 400, 401, 403, 404, 406, 408, 410, 425, 429, 500, 503)}


REASONS = sorted(all_reasons())
TEN = {"allow_addresses": ("10.0.0.0/8",)}


def refused(address):
    return f"[address refused: {address} is not a public address]"


def row(url="https://e.org/1.jpg", message=""):
    return FailedRow("t.csv row 1", url, message)


def test_the_reasons_of_the_code_are_found():
    assert {"timeout", "robots", "host_down", "bad_row", "empty_caption", "decode", "unknown_scheme", "s3_error"} <= set(
        REASONS
    )


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_a_line_that_says_what_to_type_or_that_there_is_nothing(reason):
    text = hint(reason, [row()], FETCH)
    assert text
    assert "\n" not in text
    typed = ("ingest.", "--retry-failed", "new table", "curl", "nothing to type", "error_message")
    assert any(word in text for word in typed), text


def test_no_line_is_for_a_reason_that_no_row_can_have():
    assert {*BY_ROWS, *FIXED, *CONCERNED, *DROPPED} <= set(REASONS)


@pytest.mark.parametrize(
    ("reason", "urls", "message", "words"),
    [
        ("bad_url", ["/data/a/1.jpg", "/data/b/2.jpg"], "no scheme", "'ingest.fetch.allow_files=[/data]' --retry-failed"),
        ("bad_url", ["/a/1.jpg", "/b/2.jpg"], "no scheme", "ingest.fetch.allow_files=[/a,/b]"),
        ("bad_url", ["/my data, 1/1.jpg"], "no scheme", "'ingest.fetch.allow_files=[\"/my data, 1\"]'"),
        ("bad_url", ["images/1.jpg"], "no scheme", "ingest.fetch.allow_files=[FOLDER]"),
        ("bad_url", ["1.jpg"], "no scheme", "ingest.fetch.allow_files=[FOLDER]"),
        ("bad_url", ["www.e.org/1.jpg"], "no scheme", "write https:// or http://"),
        ("bad_url", ["e.org"], "no scheme", "write https:// or http://"),
        ("bad_url", [""], "the URL is empty", "ingest.url_column"),
        ("bad_url", ["http://u:p@e.org/1"], "the URL holds a user name or a password", "must not hold a user name"),
        ("unknown_scheme", ["file:///data/1.jpg"], "file: is not fetched", "ingest.fetch.allow_files=[/data]"),
        ("unknown_scheme", ["file:///etc/passwd"], "file: is not fetched", "leave them refused"),
        ("unknown_scheme", ["file:///etc/a/b", "file:///data/1.jpg"], "file: is not fetched", "allow_files=[/data]"),
        ("unknown_scheme", ["s3://b/a/1.jpg"], "s3: is not fetched", "ingest.fetch.allow_s3=[s3://b/]"),
        ("unknown_scheme", ["gs://b/a/1.jpg"], "gs: is not fetched", "ingest.bytes_column"),
        ("address_refused", ["http://h/1"], refused("10.0.0.7"), "allow_addresses=[10.0.0.7/32]"),
        ("address_refused", ["http://h/1"], refused("fd00::1"), "allow_addresses=[fd00::1/128]"),
        ("address_refused", ["http://h/1"], refused("169.254.169.254"), "leave them refused"),
        ("address_refused", ["s3://b/1"], "the address is under none of ingest.fetch.allow_s3", "allow_s3=[s3://b/]"),
        ("address_refused", ["/d/1.jpg"], "the path is under none of ingest.fetch.allow_files", "allow_files=[/d]"),
        ("http_403", ["https://e.org/1"], "HTTP status 403", "ingest.fetch.user_agent_contact=YOU@EXAMPLE.ORG --retry"),
        ("timeout", ["https://e.org/1"], "silent for 10 s", "ingest.fetch.read_timeout_s=30"),
        ("timeout", ["https://e.org/1"], "no complete answer within 20 s", "ingest.fetch.total_timeout_s=60"),
        ("not_an_image", ["https://e.org/1"], "an HTML page, not an image", "web pages came instead"),
        ("empty_body", [""], "column jpg holds no bytes", "ingest.bytes_column"),
    ],
)  # fmt: skip
def test_a_line_follows_from_the_rows(reason, urls, message, words):
    assert words in hint(reason, [row(url, message) for url in urls], FETCH)


def test_many_private_addresses_are_named_by_their_network():
    rows = [row("http://h/", f"address refused: 10.0.{n}.1 is not a public address") for n in range(5)]
    assert "allow_addresses=[10.0.0.0/8]" in hint("address_refused", rows, FETCH)


def test_a_setting_keeps_what_it_allowed_and_is_read_as_it_is_written():
    text = hint("bad_url", [row("/b, c/1.jpg", "no scheme")], FetchConfig(allow_files=("/a",)))
    key, _, value = text.partition("'")[2].partition("'")[0].partition("=")
    assert (key, yaml.safe_load(value)) == ("ingest.fetch.allow_files", ["/a", "/b, c"])


def test_rows_that_the_settings_allow_by_now_need_only_the_retry():
    fetch = FetchConfig(allow_files=("/a",))
    assert hint("bad_url", [row("/a/1.jpg", "no scheme")], fetch) == "the settings allow these rows now: --retry-failed bad_url"


def test_a_contact_that_is_there_is_not_asked_for():
    assert "contact=" not in hint("http_403", [row()], FetchConfig(user_agent_contact="a@e.org"))


@pytest.mark.parametrize(
    "url",
    [
        "https://user:SECRET@e.org/a.jpg",
        "http:/user:SECRET@e.org/a.jpg",
        "//user:SECRET@e.org/a.jpg",
        "user:SECRET@e.org/a.jpg",
        "https://e.org/a.jpg?X-Amz-Signature=SECRET",
        "https://e.org/a.jpg#access_token=SECRET",
        "s3://SECRET@bucket/a.jpg",
    ],
)
def test_an_example_shows_no_credentials(url):
    assert "SECRET" not in row(url).shown_url


def test_an_example_is_short_and_printable():
    assert row("https://e.org/\x1b[2Jred\n" + "a" * 500).shown_url.isprintable()
    assert len(row("https://e.org/" + "a" * 500).shown_url) <= 120


@pytest.mark.parametrize(
    ("reason", "one", "changed", "concerned"),
    [
        ("bad_url", row("/d/1.jpg", "no scheme"), {"allow_files": ("/d",)}, True),
        ("bad_url", row("/e/1.jpg", "no scheme"), {"allow_files": ("/d",)}, False),
        ("bad_url", row("/d/../e/1.jpg", "no scheme"), {"allow_files": ("/d",)}, False),
        ("bad_url", row("a/1.jpg", "no scheme"), {"allow_files": ("/d",)}, True),
        ("bad_url", row("http://[e/1.jpg", "an IPv6 address"), {"allow_files": ("/d",)}, False),
        ("unknown_scheme", row("s3://b/1.jpg"), {"allow_s3": ("s3://b",)}, True),
        ("unknown_scheme", row("s3://bc/1.jpg"), {"allow_s3": ("s3://b",)}, False),
        ("address_refused", row("http://h/", refused("10.0.0.1")), TEN, True),
        ("address_refused", row("http://h/", refused("172.16.0.1")), TEN, False),
        ("http_403", row(), {"user_agent_contact": "a@e.org"}, True),
        ("http_404", row(), {"user_agent_contact": "a@e.org"}, False),
        ("timeout", row(message="no complete answer within 20 s"), {"total_timeout_s": 60.0}, True),
        ("timeout", row(message="silent for 10 s"), {"total_timeout_s": 60.0}, False),
        ("timeout", row(message="no complete answer within 60 s"), {"total_timeout_s": 60.0}, False),
        ("timeout", row(message="no complete answer within 20 s"), {"total_timeout_s": 5.0}, False),
        ("too_large", row(message="the body is over 33554432 bytes"), {"max_bytes": 64 << 20}, True),
        ("http_503", row(), {"host_concurrency": 4}, True),
        ("http_503", row(), {"host_concurrency": 40}, False),
    ],
)  # fmt: skip
def test_a_change_of_settings_concerns_the_rows_that_may_have_another_result(reason, one, changed, concerned):
    now = FetchConfig(**changed)
    assert (may_concern(reason, now, FETCH) and is_concerned(reason, one, now)) == concerned
    assert not may_concern(reason, now, now), "nothing has changed"

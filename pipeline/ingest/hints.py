"""One line for each reason why a row did not become a sample: what to type.

In: a reason, some of its rows, and the settings. Out: the line, and which rows a change of the settings concerns. Where one
reason has several causes (a URL without a scheme may be a path), the most frequent one among the rows counts.
"""

from __future__ import annotations

import ipaddress
import json
import os.path
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.config import FetchConfig
from pipeline.fetch.address_guard import is_refused, parse_networks
from pipeline.storage.url_credentials import without_userinfo

DROPPED = frozenset({"bad_caption", "empty_caption", "short_caption", "long_caption", "too_small", "aspect_ratio", "removed"})
"""Reasons of rows that a rule dropped: all of the status `dropped`."""
SYSTEM_FOLDERS = ("/boot", "/etc", "/proc", "/sys")
"""Folders that no table of images needs, and whose files may be secret."""
LONGEST_URL = 120
ALLOWED = frozenset({"bad_url", "unknown_scheme", "address_refused"})
"""Reasons of rows whose addresses a setting may allow."""
PATH, HOST, FILE, OBJECT, PRIVATE, OTHER = "path", "host", "file", "object", "private", "other"
_IMAGE = re.compile(r"\.(jpe?g|png|gif|webp|bmp|tiff?|avif)$", re.IGNORECASE)
_REFUSED = re.compile(r"address refused: (\S+) is not")
_LIMIT = re.compile(r"(?:over|more than|within|silent for) ([\d.]+(?:e\+\d+)?)")
_BLOCKS = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_NEW_OUTPUT = "in a new ingest.output: a data set keeps its options"


@dataclass(frozen=True)
class FailedRow:
    """A row that did not become a sample.

    Attributes:
        place: table and number of the row, counted from 1.
        message: the sidecar's error_message.
    """

    place: str
    url: str
    message: str

    @property
    def shown_url(self) -> str:
        """The URL for people: without user name, password, query and fragment, which may hold keys; printable and short."""
        text = re.sub(r"^([\s/\\]*)[^/?#\\]*@", r"\1***@", without_userinfo(self.url))
        place = re.search(r"[?#]", text)
        text = text if place is None else f"{text[: place.start()]}{place[0]}..."
        text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
        return text if len(text) <= LONGEST_URL else f"{text[: LONGEST_URL - 3]}..."


def hint(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    """Says what to type after rows have failed for a reason; "" for a reason that is unknown here."""
    if reason in ALLOWED and rows and all(is_concerned(reason, row, fetch) for row in rows):
        return f"the settings allow these rows now: --retry-failed {reason}"
    if reason in BY_ROWS:
        return BY_ROWS[reason](reason, rows, fetch)
    if reason in FIXED:
        return FIXED[reason]
    status = re.fullmatch(r"http_(\d+)", reason)
    if status is None:
        return ""
    if int(status[1]) >= 500:
        return _busy(reason, rows, fetch)
    return f"the servers answer so to this client; compare with: curl -I URL; --retry-failed {reason} fetches the rows again"


def is_reason(word: str) -> bool:
    """True for the name of a reason."""
    return word in BY_ROWS or word in FIXED or re.fullmatch(r"http_\d{3}", word) is not None


def hint_before(urls: Sequence[str], fetch: FetchConfig) -> str:
    """Says what to type if all of some URLs are paths and none may be read; else ""."""
    rows = [FailedRow("", url, "no scheme") for url in urls if url.strip()]
    kinds = {_kind_of("bad_url", row) for row in rows}
    if not rows or fetch.allow_files or not kinds <= {PATH, FILE}:
        return ""
    return _paths("", rows, fetch).replace(" --retry-failed ", "")


# ---------------------------------------------------------------------------------------------------- lines that depend on rows


def _addresses(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    kind = _kind(reason, rows)
    if kind == OBJECT:
        return _objects(reason, rows, fetch)
    if kind in (PATH, FILE):
        return _paths(reason, rows, fetch)
    found = {address for row in rows if (address := _refused_address(row)) is not None}
    safe = sorted((one for one in found if not one.is_link_local), key=lambda one: (one.version, int(one)))
    if found and not safe:
        return "link-local addresses are a cloud's own service, with keys: leave them refused, and remove these rows"
    add = _setting(
        "ingest.fetch.allow_addresses", list(dict.fromkeys([*fetch.allow_addresses, *(_networks(safe) or ["NETWORK"])]))
    )
    return f"these hosts are not public; if you trust the table, add: {add} --retry-failed {reason}"


def _bad_urls(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    kind = _kind(reason, rows)
    if kind in (PATH, FILE):
        return _paths(reason, rows, fetch)
    if kind == HOST:
        return "write https:// or http:// before the hosts in a new table, and ingest that"
    if rows and all("user name" in row.message for row in rows):
        return "URLs must not hold a user name or a password: write others, such as presigned ones, in a new table"
    return "these are no URLs: is ingest.url_column the right column? Otherwise write them again, in a new table"


def _schemes(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    kind = _kind(reason, rows)
    if kind in (PATH, FILE):
        return _paths(reason, rows, fetch)
    if kind == OBJECT:
        return _objects(reason, rows, fetch)
    return (
        "only http, https, s3 and files are read: copy the images there, or put their bytes into a column (ingest.bytes_column)"
    )


def _paths(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    asked = {PurePosixPath(path).parent for row in rows if (path := _path(row.url)).startswith("/")}
    folders = {str(folder) for folder in asked if not any(folder.is_relative_to(one) for one in SYSTEM_FOLDERS)}
    if asked and not folders:
        return "these are files of the system, which may be secret: leave them refused, and remove these rows, in a new table"
    common = os.path.commonpath(folders) if folders else ""
    named = [common] if common not in ("", "/") else sorted(folders - {"/"})[:3] or ["FOLDER"]
    add = _setting("ingest.fetch.allow_files", [*fetch.allow_files, *(one for one in named if one not in fetch.allow_files)])
    what = "" if folders else " (FOLDER: what the paths are relative to)"
    return f"paths are read only in folders that you allow; add: {add} --retry-failed {reason}{what}"


def _objects(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    buckets = {f"s3://{urlsplit(row.url.strip()).netloc}/" for row in rows if row.url.strip().startswith("s3://")}
    named = sorted(buckets - set(fetch.allow_s3))[:3] or ["s3://BUCKET/"]
    add = _setting("ingest.fetch.allow_s3", [*fetch.allow_s3, *named])
    return f"objects are read, with this machine's keys, only under prefixes that you allow; add: {add} --retry-failed {reason}"


def _forbidden(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    if fetch.user_agent_contact:
        return f"the servers refuse this client, though it names a contact; {_slower(fetch)} --retry-failed {reason}"
    return (
        "many servers refuse clients that name no contact; add: ingest.fetch.user_agent_contact=YOU@EXAMPLE.ORG "
        f"--retry-failed {reason}"
    )


def _busy(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    return f"the servers are busy, or limit us; later, and slower, add: {_slower(fetch)} --retry-failed {reason}"


def _slow(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    silent = sum("silent for" in row.message for row in rows) * 2 > len(rows)
    name, value = ("read_timeout_s", fetch.read_timeout_s) if silent else ("total_timeout_s", fetch.total_timeout_s)
    return f"wait longer; add: ingest.fetch.{name}={value * 3:g} --retry-failed {reason}; or go slower: {_slower(fetch)}"


def _large(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    return f"allow larger files; add: ingest.fetch.max_bytes={fetch.max_bytes * 4} --retry-failed {reason}"


def _redirects(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    return f"follow more; add: ingest.fetch.max_redirects={max(20, fetch.max_redirects * 2)} --retry-failed {reason}"


def _empty(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    if any(row.message.startswith("column ") for row in rows):
        return "is ingest.bytes_column the right column? Rows without bytes belong into a new table, with them"
    return f"the servers send nothing; --retry-failed {reason} fetches the rows again"


def _no_images(reason: str, rows: Sequence[FailedRow], fetch: FetchConfig) -> str:
    if sum("an HTML page" in row.message for row in rows) * 2 > len(rows):
        return "web pages came instead of images: is ingest.url_column the column with the images' own URLs?"
    return "error_message in the sidecars says what came instead; is ingest.url_column the right column?"


BY_ROWS: dict[str, Callable[[str, Sequence[FailedRow], FetchConfig], str]] = {
    "address_refused": _addresses,
    "bad_url": _bad_urls,
    "unknown_scheme": _schemes,
    "http_403": _forbidden,
    "http_408": _busy,
    "http_425": _busy,
    "http_429": _busy,
    "connection_lost": _busy,
    "host_down": _busy,
    "timeout": _slow,
    "too_large": _large,
    "too_many_redirects": _redirects,
    "empty_body": _empty,
    "not_an_image": _no_images,
}
"""Reasons whose line depends on their rows or on the settings."""
FIXED = {
    "http_401": "these servers want a login: give URLs that need none (presigned ones), or the bytes (ingest.bytes_column)",
    "http_404": "nothing to type: these images are gone",
    "http_410": "nothing to type: these images are gone",
    "robots": "nothing to type: the owners do not allow this use (X-Robots-Tag)",
    "dns": (
        "hosts without an address; for most rows, the resolver is overloaded, add: ingest.num_workers=4 "
        "ingest.fetch.concurrency=16 --retry-failed dns"
    ),
    "connect": "nothing listens there, or a firewall is between: try curl -I URL from a worker, then --retry-failed connect",
    "tls": "certificates that are not valid: try curl -I URL from a worker, then --retry-failed tls",
    "bad_answer": "nothing to type: error_message in the sidecars says what is wrong with the servers' answers",
    "error": "please report error_message of the sidecars as a bug; --retry-failed error fetches the rows again",
    "not_found": (
        "no such file or object; is every folder of ingest.fetch.allow_files on all nodes? Then --retry-failed not_found"
    ),
    "s3_error": (
        "error_message in the sidecars has S3's answer; keys, region and endpoint come from the environment; then "
        "--retry-failed s3_error"
    ),
    "unsupported_format": "nothing to type: convert these images and put them into a new table",
    "decode": "nothing to type: these images are damaged; if they came broken, --retry-failed decode",
    "too_many_pixels": f"raise ingest.image.max_pixels, {_NEW_OUTPUT}",
    "too_long_side": (
        f"ingest.image.format=png stores sides of up to 1,000,000 pixels, {_NEW_OUTPUT}; JPEGs of over 65,500 cannot be read"
    ),
    "too_small": f"lower ingest.image.min_side_px, {_NEW_OUTPUT}",
    "aspect_ratio": f"raise ingest.image.max_aspect_ratio, {_NEW_OUTPUT}",
    "empty_caption": f"these rows have no caption; if all are so, set ingest.caption_column to another column, {_NEW_OUTPUT}",
    "short_caption": f"lower ingest.caption.min_words and min_characters, {_NEW_OUTPUT}",
    "long_caption": f"raise ingest.caption.max_characters, {_NEW_OUTPUT}",
    "bad_caption": "write these captions as UTF-8 in a new table, and ingest that",
    "removed": "nothing to type: these URLs were purged from the data set, and no table brings them back",
    "bad_row": "fix the lines that error_message in the sidecars names, and ingest them as a new table",
}
"""Reasons with one line for all their rows."""


# ---------------------------------------------------------------------------------------------------- rows, and changed setting


def may_concern(reason: str, now: FetchConfig, then: FetchConfig) -> bool:
    """True if the settings differ in a way that some row of this reason may now have another result."""
    wider = {
        name for name in ("allow_files", "allow_s3", "allow_addresses") if set(getattr(now, name)) - set(getattr(then, name))
    }
    names = ("total_timeout_s", "read_timeout_s", "max_bytes", "max_redirects", "attempts", "host_max_failures")
    wider |= {name for name in names if getattr(now, name) > getattr(then, name)}
    wider |= {name for name in ("concurrency", "host_concurrency") if getattr(now, name) < getattr(then, name)}
    wider |= {"user_agent_contact"} if now.user_agent_contact not in ("", then.user_agent_contact) else set()
    return bool(wider & set(CONCERNED.get(reason, BUSY if re.fullmatch(r"http_5\d\d", reason) else ())))


BUSY = ("attempts", "concurrency", "host_concurrency")
CONCERNED: dict[str, tuple[str, ...]] = {
    "bad_url": ("allow_files",),
    "unknown_scheme": ("allow_files", "allow_s3"),
    "address_refused": ("allow_addresses", "allow_files", "allow_s3"),
    "not_found": ("allow_files",),
    "http_403": ("user_agent_contact",),
    "http_429": ("user_agent_contact", *BUSY),
    "http_408": BUSY,
    "http_425": BUSY,
    "connection_lost": BUSY,
    "host_down": ("host_max_failures", "concurrency", "host_concurrency"),
    "dns": ("concurrency",),
    "timeout": ("total_timeout_s", "read_timeout_s", "concurrency", "host_concurrency"),
    "too_large": ("max_bytes",),
    "too_many_redirects": ("max_redirects",),
}
"""Keys of `ingest.fetch` by which rows of a reason may have another result."""


def is_concerned(reason: str, row: FailedRow, now: FetchConfig) -> bool:
    """True if a row may have another result under the settings, as far as the row itself tells."""
    if reason in ALLOWED:
        kind = _kind(reason, [row])
        if kind == OBJECT:
            return any(row.url.startswith(prefix.rstrip("/") + "/") for prefix in now.allow_s3)
        if kind in (PATH, FILE):
            folders = [Path(folder).expanduser().resolve() for folder in now.allow_files]
            return any((folder / _path(row.url)).resolve().is_relative_to(folder) for folder in folders)
        address = _refused_address(row) if kind == PRIVATE else None
        return address is not None and not is_refused(address, parse_networks(now.allow_addresses))
    limit = _LIMIT.search(row.message)
    if limit is None or reason not in ("timeout", "too_large", "too_many_redirects"):
        return True
    if reason == "timeout":
        return float(limit[1]) < (now.read_timeout_s if "silent" in row.message else now.total_timeout_s)
    return float(limit[1]) < (now.max_bytes if reason == "too_large" else now.max_redirects)


def _kind(reason: str, rows: Sequence[FailedRow]) -> str:
    """Names what most of the rows hold in place of a public web address."""
    kinds = Counter(_kind_of(reason, row) for row in rows)
    return kinds.most_common(1)[0][0] if kinds else OTHER


def _kind_of(reason: str, row: FailedRow) -> str:
    url = row.url.strip()
    scheme = url.partition(":")[0].lower()
    if reason == "address_refused" and "is not a public address" in row.message:
        return PRIVATE
    if url.startswith("s3://"):
        return OBJECT
    if scheme == "file":
        return FILE
    if "://" in url or scheme in ("http", "https", "data") or not url or (reason == "unknown_scheme" and len(scheme) > 1):
        return PRIVATE if reason == "address_refused" else OTHER
    first, slash, _ = url.partition("/")
    if "no scheme" in row.message and "." in first.strip(".") and (slash or not _IMAGE.search(url)):
        return HOST
    return PATH if "/" in url or "\\" in url or _IMAGE.search(url) else OTHER


def _path(url: str) -> str:
    url = url.strip()
    return urlsplit(url).path if url.lower().startswith("file:") else url


def _refused_address(row: FailedRow) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    found = _REFUSED.search(row.message)
    try:
        return ipaddress.ip_address(found[1] if found else urlsplit(row.url).hostname or "")
    except ValueError:
        return None


def _networks(addresses: Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> list[str]:
    """Up to three addresses one by one; more as the private networks that hold them."""
    if len(addresses) > 3:
        blocks = [str(block) for block in _BLOCKS if any(one in block for one in addresses if one.version == block.version)]
        if blocks:
            return blocks
    return [f"{one}/{one.max_prefixlen}" for one in addresses[:3]]


def _slower(fetch: FetchConfig) -> str:
    return f"ingest.fetch.host_concurrency={max(1, fetch.host_concurrency // 4)}"


def _setting(key: str, values: Sequence[str]) -> str:
    """An override that a shell and YAML read as these values."""
    plain = all(re.fullmatch(r"[\w./~:-]+", value) for value in values)
    return shlex.quote(f"{key}=[{','.join(values)}]" if plain else f"{key}={json.dumps(list(values), ensure_ascii=False)}")

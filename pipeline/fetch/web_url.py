"""Web addresses, read as browsers read them (https://url.spec.whatwg.org) and asked for as they are written.

In: the text of a table's row, or of a `Location` header. Out: a WebURL, or the reason why it is none.

Host and port follow the standard, so that every spelling that a browser opens is opened. Path and query are kept byte for
byte, since servers sign and compare them: only what would break the request line (spaces, control characters, non-ASCII) is
percent-encoded. Browsers also rewrite dot segments, backslashes and a few characters: `browser_target` is their spelling.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import idna

from pipeline.errors import Failure

DEFAULT_PORTS = {"http": 80, "https": 443}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_AROUND = "".join(map(chr, range(0x21)))
"""Control characters and spaces, which browsers strip from both ends."""
_ILLEGAL = re.compile(r"[^\x21-\x7e]")
_NOT_IN_PATH = re.compile(r"[\"<>^`{}]")
_NOT_IN_QUERY = re.compile(r"[\"<>']")
_NOT_IN_HOST = re.compile(r"[\x00-\x20#%/:<>?@\[\\\]^|\x7f]")
_DOT, _TWO_DOTS = (".", "%2e"), ("..", ".%2e", "%2e.", "%2e%2e")
_MAX_LABEL = 63


@dataclass(frozen=True)
class WebURL:
    """An http or https address.

    Attributes:
        host: in ASCII and lower case; an IPv6 address without brackets.
        path: as written, with what would break a request line percent-encoded; empty or begins with a slash.
        query: likewise; None if there is no question mark.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str | None

    @property
    def authority(self) -> str:
        """Host and port as in the Host header: without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query as written."""
        return (self.path or "/") + ("" if self.query is None else f"?{self.query}")

    @property
    def browser_target(self) -> str:
        """Path and query as a browser sends them."""
        path = _NOT_IN_PATH.sub(_quote, _without_dots(self.path.replace("\\", "/"))) or "/"
        return path + ("" if self.query is None else f"?{_NOT_IN_QUERY.sub(_quote, self.query)}")


def parse_url(url: str, base: WebURL | None = None) -> WebURL | Failure:
    """Reads a web address.

    Args:
        base: the address that `url` may be relative to. Without one, `//host/path` is read as http.
    """
    url = re.sub(r"[\t\r\n]", "", url.strip(_AROUND))
    try:
        scheme, rest = _split_scheme(url, base)
        if base is None or re.match(r"[/\\]{2}", rest):
            return _absolute(scheme, rest.lstrip("/\\"))
        return _relative(rest, base)
    except _NoWebURLError as error:
        return Failure("failed_to_download", error.reason, _printable(str(error)))


class _NoWebURLError(ValueError):
    def __init__(self, message: str, reason: str = "bad_url") -> None:
        super().__init__(message)
        self.reason = reason


def _split_scheme(url: str, base: WebURL | None) -> tuple[str, str]:
    """(scheme, rest). The rest of an absolute address begins with two slashes if there is a base."""
    found = _SCHEME.match(url)
    if found is None:
        if base is None and not url.startswith("//"):
            raise _NoWebURLError("the URL has no scheme; write https:// or http:// before the host")
        return ("http" if base is None else base.scheme), url
    scheme, rest = found[1].lower(), url[found.end() :]
    if scheme not in DEFAULT_PORTS:
        raise _NoWebURLError(f"{scheme}: is not fetched; only http and https are", "unknown_scheme")
    if base is None or (scheme == base.scheme and not rest.startswith("//")):
        return scheme, rest  # without a base, any number of slashes is skipped; `http:a.jpg` is relative to an http base
    return scheme, "//" + rest.lstrip("/\\")


def _absolute(scheme: str, rest: str) -> WebURL:
    """The address whose authority begins `rest`."""
    found = re.match(r"[^/\\?#]*", rest)
    assert found is not None  # it matches the empty text
    userinfo, _, authority = found[0].rpartition("@")
    if userinfo:
        raise _NoWebURLError("the URL holds a user name or a password")
    host, port = _host_and_port(authority)
    return WebURL(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, *_path_and_query(rest[found.end() :]))


@lru_cache(maxsize=10_000)  # a table has few hosts for its rows
def _host_and_port(authority: str) -> tuple[str, int | None]:
    split = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(0*[0-9]{0,5}))?", authority)
    if split is None or int(split[2] or 0) > 65535:
        raise _NoWebURLError("the URL's host or port cannot be read: an IPv6 address needs brackets, a port is at most 65535")
    return _host(split[1]), int(split[2]) if split[2] else None


def _relative(reference: str, base: WebURL) -> WebURL:
    """Resolves a reference that has no authority."""
    path, query = _path_and_query(reference)
    if reference[:1] in ("", "#"):
        path, query = base.path, base.query
    elif reference[0] == "?":
        path = base.path
    elif reference[0] not in "/\\":
        folder = base.path.replace("\\", "/").rpartition("/")[0]
        path = _without_dots(f"{folder}/{path}".replace("\\", "/"))
    return WebURL(base.scheme, base.host, base.port, path, query)


def _path_and_query(rest: str) -> tuple[str, str | None]:
    """Splits what follows the authority; the fragment is not part of a request."""
    path, question_mark, query = _ILLEGAL.sub(_quote, rest.partition("#")[0]).partition("?")
    if path.startswith("\\"):
        path = "/" + path[1:]  # a request line needs a slash here
    return path, query if question_mark else None


def _quote(found: re.Match[str]) -> str:
    """Percent-encodes a character as UTF-8; a byte of a header that is not UTF-8 stays that byte."""
    try:
        data = found[0].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = "\N{REPLACEMENT CHARACTER}".encode()
    return "".join(f"%{byte:02X}" for byte in data)


def _without_dots(path: str) -> str:
    """Resolves `.` and `..`, also where they are percent-encoded."""
    segments = path.split("/")
    kept: list[str] = []
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if segment.lower() in _TWO_DOTS:
            del kept[max(1, len(kept) - 1) :]  # the first one is the empty text before the first slash
        elif segment.lower() not in _DOT:
            kept.append(segment)
            continue
        if last:
            kept.append("")
    return "/".join(kept)


def _host(written: str) -> str:
    """The host in ASCII: a name as the DNS holds it, or an address in its usual form."""
    if written.startswith("["):
        try:
            return str(ipaddress.IPv6Address(written[1:-1] if "%" not in written else ""))
        except ValueError:
            raise _NoWebURLError("the URL's host is not an IPv6 address") from None
    try:
        name = unquote_to_bytes(written.encode("utf-8", "surrogateescape")).decode()
        if not name.isascii():
            # Not `idna.encode`: it refuses names that browsers open, such as those with an emoji.
            labels = idna.uts46_remap(name, std3_rules=False, transitional=False).split(".")
            name = ".".join(label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in labels)
    except (UnicodeError, idna.IDNAError) as error:
        raise _NoWebURLError(f"the URL's host cannot be a name: {error}") from None
    name = name.lower()
    if not name:
        raise _NoWebURLError("the URL has no host")
    if _NOT_IN_HOST.search(name):
        raise _NoWebURLError("the URL's host holds a character that no host has")
    if max(map(len, name.split("."))) > _MAX_LABEL:
        raise _NoWebURLError(f"a label of the URL's host has more than {_MAX_LABEL} characters")
    return _ipv4(name) or name


def _ipv4(name: str) -> str | None:
    """The usual form of an IPv4 address in any of its spellings; None if the name does not end in a number."""
    parts = name.removesuffix(".").split(".")
    if not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", parts[-1]):
        return None
    try:
        numbers = [_number(part) for part in parts]
        *bytes_, rest = numbers
        if len(numbers) > 4 or max(bytes_, default=0) > 255 or rest >= 256 ** (5 - len(numbers)):
            raise ValueError
    except ValueError:
        raise _NoWebURLError("the URL's host ends in a number, but is not an IPv4 address") from None
    return str(ipaddress.IPv4Address(sum(byte << 8 * (3 - place) for place, byte in enumerate(bytes_)) + rest))


def _number(text: str) -> int:
    """A part of an IPv4 address: hexadecimal after 0x, octal after 0. Raises ValueError."""
    if not text.isascii() or not text.isalnum():
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") else 10)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()

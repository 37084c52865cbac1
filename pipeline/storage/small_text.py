"""Reads small text files that people write: class names, prompts, takedown lists, recipes.

In: the bytes of a file, from any editor on any system. Out: its text or its lines, or a ConfigError that says what the file is
instead and what to do. Every small file that a person writes is read here, so that a byte-order mark, a line end or an encoding
never becomes part of a value.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from pipeline.errors import ConfigError, StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage

_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHER_FILES = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"<!doctype html", "is an HTML page, as a server sends for an error or a login; download the file again"),
    (b"<html", "is an HTML page, as a server sends for an error or a login; download the file again"),
    (b"<?xml", "is XML; write a plain text file"),
    (b"{\\rtf", "is a Rich Text document; save it as plain text in UTF-8"),
    (b"%pdf", "is a PDF; save it as plain text in UTF-8"),
    (b"pk\x03\x04", "is a zip archive, as spreadsheets and documents are; save it as plain text in UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip; decompress it with gunzip"),
    (b"bzh", "is compressed with bzip2; decompress it with bunzip2"),
    (b"\xfd7zxz", "is compressed with xz; decompress it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; decompress it with unzstd"),
)
_LINE_END = re.compile(r"\r+\n|\n|\r")
"""Ends of lines on any system; `\\r\\r\\n` is what two conversions leave. `str.splitlines` also splits inside of names."""
_INVISIBLE = "\ufeff\u200b\u2060\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks without a width: of byte order, where files were joined, and of direction, where text was copied from a page."""
_DOS_END = "\x1a"
_MANY = 8
"""Characters of which half are hardly tabs by chance."""
_CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f]")


def decode_text(data: bytes, subject: str) -> str:
    """Decodes a text file: UTF-8, or UTF-16 and UTF-32 with a byte-order mark, which is removed.

    Args:
        subject: begins the message of an error; it names the file.

    Raises:
        ConfigError: the file is in another encoding, or is no text.
    """
    start = data[:64].lstrip().lower()
    for magic, rule in _OTHER_FILES:
        if start.startswith(magic):
            raise ConfigError(f"{subject}: {rule}")
    mark, encoding = next(((mark, encoding) for mark, encoding in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ConfigError(f"{subject}: is not complete {encoding[:-3].upper()}; save it again, as UTF-8") from None
        line = body.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{subject}: line {line} is not UTF-8 (byte 0x{body[error.start]:02x}); save the file as UTF-8, e.g. with "
            "iconv -f WINDOWS-1252 -t UTF-8, if that is its encoding"
        ) from None
    wide = encoding == "utf-8" and is_wide(text)
    if wide or "\0" in text:
        what = "looks like UTF-16 without a byte-order mark" if wide else "holds NUL characters, so it is no text"
        raise ConfigError(f"{subject}: {what}; save it as plain text in UTF-8")
    return text.removesuffix(_DOS_END)


def is_wide(text: str) -> bool:
    """True for UTF-16 or UTF-32 that was read as UTF-8; zeros at the end are padding.

    Every other byte of it is the number of a script, which UTF-8 takes for a control character: 0 for Latin, 4 for Cyrillic,
    and a tab for scripts of India. Tabs count beside zeros, which are half of a space, and where all places are theirs.
    """
    has_zeros, text = "\0" in text, text.rstrip("\0")
    found = [_CONTROL.findall(part) for part in (text[::2], text[1::2])]
    if len(text) >= _MANY and max(map(len, found)) >= len(text) // 2:
        return True
    return max(sum(has_zeros or not character.isspace() for character in part) for part in found) > len(text) // 4


def split_lines(text: str) -> list[str]:
    """Returns the lines without white space and invisible marks around them, and without blank ones at the end."""
    lines = [strip_marks(line) for line in _LINE_END.split(text)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def strip_marks(text: str) -> str:
    """Returns a text without white space and invisible marks around it."""
    before = ""
    while text != before:
        before, text = text, text.strip().strip(_INVISIBLE)
    return text


def read_text(storage: Storage, path: str, subject: str = "") -> str | None:
    """Reads a text file of a storage; None if it does not exist. Raises ConfigError as `decode_text` does."""
    subject = subject or storage.address(path)
    try:
        data = storage.read(path)
    except FileNotFoundError:
        return None
    except StorageError:
        raise
    except OSError as error:  # a folder, or a file that this user may not read
        raise ConfigError(f"{subject}: cannot be read ({error.strerror or error}); name a text file") from None
    return decode_text(data, subject)


def read_named_text(key: str, address: str, may_be_empty: bool = False) -> str:
    """Reads the text file at the address that a key holds.

    Raises:
        ConfigError: there is no such file, or it is no text, or holds nothing and may not be empty.
    """
    folder, slash, name = address.rpartition("/")
    text = read_text(open_storage(folder or slash or "."), name, f"{key}={address}") if name else None
    if text is None:
        raise ConfigError(f"{key}={address}: there is no such file; correct the address")
    if not may_be_empty and not split_lines(text):
        raise ConfigError(f"{key}={address}: is empty; write what it should hold, or unset {key}")
    return text


def parse_json(text: str, subject: str) -> Any:
    """Parses JSON. Raises ConfigError where it is not valid, and where a key occurs twice, of which one would be lost."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(f"{subject}: holds the key {key!r} twice; remove one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{subject}: line {error.lineno} is not JSON ({error.msg}); correct it") from None
    except RecursionError:
        raise ConfigError(f"{subject}: is JSON that is nested too deeply; correct it") from None

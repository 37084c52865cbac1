"""Searches everything that a run left behind for planted values, inside archives, tables and other tools' logs too."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow.parquet as pq

from tests.support.wandb_file import messages

MAX_DEPTH = 4


class Search:
    """A search for named values, in every encoding in which a value may be written.

    Attributes:
        seen: kind of container -> number of containers opened.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._names = {form: name for name, value in values.items() for form in forms(value)}
        self._pattern = re.compile(b"|".join(re.escape(form) for form in sorted(self._names, key=len, reverse=True)))
        self.seen: dict[str, int] = {}

    def in_folder(self, folder: Path) -> Iterator[str]:
        """Yield `WHERE: NAME` for every value found in a file or its name, whatever its extension."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield from self.in_bytes(str(path), path.read_bytes())
            yield from self.in_bytes(f"name of {path}", str(path).encode())

    def in_bytes(self, where: str, data: bytes, depth: int = 0) -> Iterator[str]:
        """Yield `WHERE: NAME` for every value found in some bytes and in what is packed in them."""
        for name in sorted({self._names[found] for found in self._pattern.findall(data)}):
            yield f"{where}: {name}"
        if depth < MAX_DEPTH:
            for member, content in self._unpacked(data):
                yield from self.in_bytes(f"{where} > {member}", content, depth + 1)

    def _unpacked(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        for kind, (is_one, unpack) in CONTAINERS.items():
            if is_one(data):
                self.seen[kind] = self.seen.get(kind, 0) + 1
                yield from unpack(data)


def forms(value: str) -> set[bytes]:
    """A value in plain text, JSON, URLs, hex, and base64 at each of its three alignments."""
    raw = value.encode()
    found = {raw, json.dumps(value)[1:-1].encode(), json.dumps(value)[1:-1].replace("/", "\\/").encode()}
    found |= {quote(value, safe="").encode(), quote(value).encode(), quote_plus(value).encode(), raw.hex().encode()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw)
        middle = encoded[(0, 2, 3)[before] : (before + len(raw)) * 8 // 6]  # the characters that neighbours do not change
        found |= {middle, middle.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def _gzip(data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        yield "gunzipped", gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return  # it only starts like gzip


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def _parquet(data: bytes) -> Iterator[tuple[str, bytes]]:
    table = pq.read_table(io.BytesIO(data))
    yield "schema", str(table.schema.to_string(show_schema_metadata=True)).encode()
    for name in table.schema.names:
        for row, value in enumerate(table.column(name).to_pylist()):
            if value is not None:
                yield f"{name}[{row}]", value if isinstance(value, bytes) else repr(value).encode()


def _wandb(data: bytes) -> Iterator[tuple[str, bytes]]:
    for number, message in enumerate(messages(data)):  # the file splits a long one into blocks
        yield f"message {number}", message


CONTAINERS = {
    "gzip": (lambda data: data[:2] == b"\x1f\x8b", _gzip),
    "zip": (lambda data: zipfile.is_zipfile(io.BytesIO(data)) and data[:2] == b"PK", _zip),
    "tar": (lambda data: data[257:262] == b"ustar", _tar),
    "parquet": (lambda data: data[:4] == data[-4:] == b"PAR1", _parquet),
    "wandb": (lambda data: data[:4] == b":W&B", _wandb),
}

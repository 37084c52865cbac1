"""Opens text tables: local or on S3, plain or gzip, and checks that they are what their names say.

In: a table's address. Out: its bytes, decompressed, in blocks; memory does not grow with the file's length. A file that was
written within the last hour may still be growing: `settled` is False, and the reader skips a last line without an end.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem

from pipeline.errors import InputError
from pipeline.storage.s3_client import new_client

logger = logging.getLogger(__name__)

WRITTEN_WITHIN = timedelta(hours=1)
"""A text table that was not written for this long is complete: its last line is read even without a line break."""
BLOCK_BYTES = 1 << 19
BOM = b"\xef\xbb\xbf"
GZIP_SUFFIX, GZIP_MAGIC = ".gz", b"\x1f\x8b"

FOREIGN = {
    b"PAR1": "parquet; give it the suffix .parquet",
    GZIP_MAGIC: "gzip; add the suffix .gz",
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack it, or export it as csv",
    b"\xd0\xcf\x11\xe0": "an Excel sheet; export it as csv",
    b"%PDF": "PDF; export the table as csv",
    b"BZh": "bzip2; unpack it",
    b"\xfd7zXZ": "xz; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd; unpack it",
    b"ARROW1": "Arrow IPC; convert it to parquet",
    b"SQLite format 3": "an SQLite database; export the table as csv",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"<!DOCTYPE": "an HTML page; download the table itself",
    b"<!doctype": "an HTML page; download the table itself",
    b"<html": "an HTML page; download the table itself",
    b"<?xml": "XML; download the table itself, or convert it to csv",
}
"""First bytes of files that are no text tables, and what they are."""
WIDE_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
WIDE_ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}
"""Bytes of four are zero in most of an ASCII text, and its encoding. With a BOM, iconv finds their order itself."""


@dataclass(frozen=True)
class TextSource:
    """A text table as it was when it was opened: later growth is not read.

    Attributes:
        size_bytes: size of the file, compressed if it is compressed.
        settled: the file was not written for an hour.
    """

    address: str
    size_bytes: int
    settled: bool

    @property
    def is_gzip(self) -> bool:
        return self.address.lower().endswith(GZIP_SUFFIX)

    @property
    def kind(self) -> str:
        """The table's suffix without compression, in lower case: .csv, .tsv, .jsonl or .ndjson."""
        name = self.address.lower().removesuffix(GZIP_SUFFIX)
        return name[name.rfind(".") :]

    def open(self, start: int = 0, stop: int | None = None) -> Any:
        """A stream of the file's bytes as they are stored, from `start` to `stop`."""
        filesystem, path = filesystem_of(self.address)
        end = self.size_bytes if stop is None else stop
        return filesystem.open_input_file(path).get_stream(start, end - start)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The decompressed bytes from `start` on; up to `stop` in a file that is not compressed.

        Raises:
            InputError: a gzip file is damaged, or it is cut off although nobody writes it.
        """
        if not self.is_gzip:
            with self.open(start, stop) as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block
            return
        for block in self._gzip_blocks():
            if start < len(block):
                yield block[start:]
            start = max(0, start - len(block))

    def head(self, length: int) -> bytes:
        """The first bytes. Raises InputError if they are not text, or not what the file's suffix says."""
        head = b""
        for block in self.blocks():
            head += block[: length - len(head)]
            if len(head) >= length:
                break
        check_text(self.address, head)
        return head

    def _gzip_blocks(self) -> Iterator[bytes]:
        with self.open() as stream:
            magic = stream.read(2)
        if magic[:2] != GZIP_MAGIC[: len(magic)]:
            raise InputError(f"ingest.input={self.address}: is not gzip; rename it without {GZIP_SUFFIX}, or compress it")
        if len(magic) < 2 and not self.settled:
            return
        with self.open() as stream, gzip.GzipFile(fileobj=stream) as file:
            block = b""
            try:
                while part := file.read1(BLOCK_BYTES):  # read would lose what lies before an early end
                    block += part
                    if len(block) >= BLOCK_BYTES:
                        yield block
                        block = b""
                yield block
            except EOFError:
                if self.settled:
                    reason = "the gzip stream ends early"
                    raise InputError(f"ingest.input={self.address}: {reason}; copy the file again, whole") from None
                say_that_a_line_waits(self.address)
                yield block
            except (gzip.BadGzipFile, zlib.error) as error:
                reason = f"the gzip stream is damaged ({error})"
                raise InputError(f"ingest.input={self.address}: {reason}; copy or compress the file again") from None


def open_source(address: str) -> TextSource:
    """The table as it is now. Raises FileNotFoundError."""
    filesystem, path = filesystem_of(address)
    info = filesystem.get_file_info(path)
    if not info.is_file:
        raise FileNotFoundError(address)
    settled = info.mtime is None or datetime.now(UTC) - info.mtime > WRITTEN_WITHIN
    return TextSource(address, info.size, settled)


def check_text(address: str, block: bytes) -> None:
    """Raises InputError if a file's first bytes are no UTF-8 text."""
    for magic, remedy in FOREIGN.items():
        if block.startswith(magic):
            raise InputError(f"ingest.input={address}: is no text table but {remedy}")
    encoding = _wide_encoding(block[:4096])
    if encoding:
        raise InputError(
            f"ingest.input={address}: is {encoding} text, and tables are read as UTF-8; convert it: "
            f"iconv -f {encoding} -t UTF-8 OLD > NEW"
        )


def _wide_encoding(head: bytes) -> str:
    """The encoding of text in 16 or 32 bits, by its BOM, or by the zeros beside ASCII characters; empty for other text."""
    for bom, encoding in WIDE_BOMS.items():
        if head.startswith(bom):
            return encoding
    if len(head) < 8:
        return ""
    zeros = tuple(head[place::4].count(0) > len(head) // 8 for place in range(4))
    if not any(zeros) or all(zeros):  # all: a part of the file that was never written
        return ""
    return WIDE_ZEROS.get(zeros, "UTF-16")


def filesystem_of(address: str) -> tuple[FileSystem, str]:
    """pyarrow's file system for a table, and its path there."""
    if address.startswith("s3://"):
        return _s3_filesystem(), address.removeprefix("s3://")
    return LocalFileSystem(), address


def _s3_filesystem() -> Any:
    """pyarrow's S3 file system, with the endpoint that boto3 uses."""
    client = new_client()
    endpoint = client.meta.endpoint_url
    scheme, _, host = endpoint.partition("://")
    options = {} if "amazonaws.com" in host else {"endpoint_override": host, "scheme": scheme}
    return S3FileSystem(region=client.meta.region_name, **options)


@cache  # a plan opens a table more than once
def say_that_a_line_waits(address: str) -> None:
    """Says once per table that its end is not read yet."""
    logger.warning(
        "%s: the last line may be incomplete; it is ingested once it ends with a line break, or once the file is an hour old",
        address,
    )

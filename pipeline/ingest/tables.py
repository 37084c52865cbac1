"""Reads tables of URLs: parquet, csv, tsv and jsonl; one file, a folder or a glob; local or s3.

In: `ingest.input`. Out: the tables' addresses, and their rows as a stream of record batches: memory does not grow with a
table's length.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem

from pipeline.config import IngestConfig
from pipeline.dataset.valid_text import exact_values, has_unknown_zone
from pipeline.errors import InputError, ReplacedError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.s3_client import new_client
from pipeline.storage.url_credentials import HIDDEN, USERINFO

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
BATCH_ROWS = 16_384
WRITTEN_WITHIN = timedelta(hours=1)
"""A text table that was not written for this long is complete: its last line is read even without a line break."""
READ_BYTES, TAIL_BYTES = 1 << 20, 1 << 16


def list_tables(pattern: str) -> list[str]:
    """Addresses of the tables that a file, folder or glob names, sorted. Raises InputError if there are none."""
    return list_files(pattern, SUFFIXES, "ingest.input")


def list_files(pattern: str, suffixes: tuple[str, ...], key: str) -> list[str]:
    """Addresses of the files with one of the suffixes that a file, folder or glob names, sorted.

    Args:
        key: the configuration's key, for the message.

    Raises:
        InputError: there are none.
    """
    if not pattern:
        raise InputError(f"{key}: is empty; name a file, a folder or a glob ({', '.join(suffixes)})")
    root, wanted = _split_glob(pattern)
    storage = open_storage(root)
    if wanted is not None:
        found = [storage.address(item.path) for item in storage.list("") if fnmatch.fnmatch(item.path, wanted)]
    elif _is_file(storage):
        found = [storage.uri]
    else:
        found = [storage.address(item.path) for item in storage.list("") if item.path.endswith(suffixes)]
    if not found:
        raise InputError(
            f"{key}={pattern}: there is no such file ({', '.join(suffixes)}); give a file, a folder or a glob that matches some"
        )
    for address in found:
        if not address.endswith(suffixes):
            raise InputError(f"{key}={address}: is not a supported file; use {', '.join(suffixes)}")
    return sorted(found)


def _is_file(storage: Storage) -> bool:
    """True if an address is that of a file or object itself."""
    folder, _, name = storage.uri.rpartition("/")
    return folder not in ("s3:/", "s3:") and open_storage(folder or "/").exists(name)


def read_batches(table: str, first_row: int = 0, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Reads a table's rows from `first_row` on, in order, in batches. Earlier row groups of a parquet file are not read.

    Raises:
        InputError: the table cannot be read.
    """
    while True:
        try:
            for batch in _read_batches(table, first_row, batch_rows):
                yield batch
                first_row += batch.num_rows
            return
        except ReplacedError:  # a growing table was written again, with the same rows and more
            continue


def _read_batches(table: str, first_row: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        if is_seekable(table):
            batches, first_row = _open_parquet(table, first_row, batch_rows)
        else:
            batches = _open_text(*_filesystem(table))
        for batch in batches:
            _ = batch.schema.names  # raises here, where it is caught, for names that are not UTF-8
            if first_row >= batch.num_rows:
                first_row -= batch.num_rows
                continue
            yield batch.slice(first_row)
            first_row = 0
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"ingest.input={table}: there is no such table; give one that exists") from None
        reason = " ".join(str(error).split())
        raise InputError(f"ingest.input={table}: the table cannot be read ({reason}); fix it or remove it") from None


def read_chunks(table: str, sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Reads a table's rows in consecutive chunks of the given sizes; the last may be shorter."""
    wanted = iter(sizes)
    held: list[pa.RecordBatch] = []
    rows, size = 0, next(wanted)
    for batch in read_batches(table):
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            held.append(part)
            rows += part.num_rows
            batch = batch.slice(part.num_rows)
            if rows == size:
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, next(wanted)
    if rows:
        yield pa.Table.from_batches(held)


def column_names(table: str) -> list[str] | None:
    """The table's column names, or None if it has no rows. Raises InputError if it cannot be read."""
    first = next((batch for batch in read_batches(table) if batch.num_rows), None)
    return None if first is None else list(first.schema.names)


def check_columns(table: str, names: list[str], config: IngestConfig) -> None:
    """Raises InputError if the table lacks a required column, or has two of the same name."""
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError(f"ingest.input={table}: two columns are named {double}; rename or drop one of them")
    source = ("bytes_column", config.bytes_column) if config.bytes_column else ("url_column", config.url_column)
    for key, column in (source, ("caption_column", config.caption_column)):
        if column not in names:
            close = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean ingest.{key}={close[0]}?" if close else f"set ingest.{key} to one of them"
            raise InputError(f"ingest.{key}={column}: {table} has the columns {', '.join(names)}; {hint}")


def hash_rows(rows: pa.Table) -> str:
    """sha256 over the rows' contents, independent of the file's format: detects edited rows."""
    others = [field.name for field in rows.schema if not _is_plain(field.type) or has_unknown_zone(field.type)]
    digest = hashlib.sha256()
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(rows.drop_columns(others) if others else rows, sink)  # text does not depend on how batches were cut
    digest.update(sink.getvalue())
    for name in others:
        digest.update(repr(exact_values(rows.column(name))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def hide_userinfo(rows: pa.Table, column: str) -> pa.Table:
    """A text table's rows with *** for user names and passwords in the URLs of a column, if it exists."""
    place = rows.schema.get_field_index(column)
    if place < 0 or not pa.types.is_string(rows.schema.types[place]):
        return rows
    return rows.set_column(place, column, pc.replace_substring_regex(rows.column(place), USERINFO, HIDDEN))


def _is_plain(kind: pa.DataType) -> bool:
    """True if pyarrow can write values of a type as CSV text."""
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_text or pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)


def _split_glob(pattern: str) -> tuple[str, str | None]:
    """(folder before the first wildcard, pattern relative to it); the pattern is None if there is no wildcard."""
    wild = re.search(r"[*?\[]", pattern)
    if wild is None:
        return pattern, None
    folder = pattern[: wild.start()].rpartition("/")[0]
    return folder or ".", pattern[len(folder) + 1 :] if folder else pattern


def is_seekable(table: str) -> bool:
    """True if a row range of the table can be read without the rows before it."""
    return table.endswith(".parquet")


def is_settled(table: str) -> bool:
    """True if the whole file is read now; the end of a recently written text table may be skipped."""
    return is_seekable(table) or _is_old(*_filesystem(table))


def _is_old(filesystem: FileSystem, path: str) -> bool:
    written = filesystem.get_file_info(path).mtime
    return written is None or datetime.now(UTC) - written > WRITTEN_WITHIN


def table_identity(table: str) -> str:
    """A string that changes when the table's file is written: size and time on disk, size and ETag in object storage."""
    folder, _, name = table.rpartition("/")
    storage = open_storage(folder)
    return f"{storage.size(name)}-{storage.etag(name)}"


def _filesystem(table: str) -> tuple[FileSystem, str]:
    """pyarrow's file system for a table, and its path there."""
    if table.startswith("s3://"):
        return _s3_filesystem(), table.removeprefix("s3://")
    return LocalFileSystem(), table


def _open_parquet(table: str, first_row: int, batch_rows: int) -> tuple[Iterator[pa.RecordBatch], int]:
    """(batches from the row group that holds `first_row` on, index of `first_row` in them).

    Raises:
        ReplacedError: the table was replaced, also while iterating: old and new parts must not be mixed.
    """
    folder, _, name = table.rpartition("/")
    far = table.startswith("s3://")
    source = open_storage(folder).open(name, READ_BYTES) if far else LocalFileSystem().open_input_file(table)
    # Without pre_buffer and with a buffer, columns stream: a row group may be larger than the memory.
    file = pq.ParquetFile(source, pre_buffer=False, buffer_size=READ_BYTES)
    group = 0
    while group < file.num_row_groups and first_row >= file.metadata.row_group(group).num_rows:
        first_row -= file.metadata.row_group(group).num_rows
        group += 1
    groups = range(group, file.num_row_groups)
    return file.iter_batches(batch_rows, row_groups=groups, use_threads=not far), first_row  # as in pipeline/storage/parquet.py


def _open_text(filesystem: FileSystem, path: str) -> Iterator[pa.RecordBatch]:
    """Streams batches of a csv, tsv or jsonl file. Skips a last line that may still be being written."""
    settled, file = _is_old(filesystem, path), filesystem.open_input_file(path)
    end = file.size() if settled else _end_of_lines(file)
    if end < file.size():
        _say_that_a_line_waits(path)
    if end == 0:
        return
    if path.endswith((".jsonl", ".ndjson")):
        yield from pa_json.open_json(file.get_stream(0, end))
        return
    names = _open_csv(path, file.get_stream(0, end), {}).schema.names
    # All columns as text: a type inferred from the first block may not fit the last.
    batches = _open_csv(path, file.get_stream(0, end), dict.fromkeys(names, pa.string()))
    yield from batches if settled else _without_open_value(batches, path)


def _end_of_lines(file: pa.NativeFile) -> int:
    """Size of a text file up to and including its last line break."""
    stop = file.size()
    while stop:
        start = max(0, stop - TAIL_BYTES)
        file.seek(start)
        tail = file.read(stop - start)
        length = max(tail.rfind(b"\n"), tail.rfind(b"\r")) + 1
        if length:
            return start + length
        stop = start
    return 0


def _without_open_value(batches: Iterable[pa.RecordBatch], path: str) -> Iterator[pa.RecordBatch]:
    """Drops a last row whose last value ends with a line break: the break may be within quotes that are still open."""
    held = None
    for batch in batches:
        if batch.num_rows:
            if held is not None:
                yield held
            held = batch
    if held is None:
        return
    last = held.column(held.num_columns - 1)[-1].as_py()
    if last and last[-1] in "\r\n":
        _say_that_a_line_waits(path)
        held = held.slice(0, held.num_rows - 1)
    yield held


@cache  # a plan opens a table more than once
def _say_that_a_line_waits(path: str) -> None:
    logger.warning(
        "%s: the last line may be incomplete; it is ingested once it ends with a line break, or once the file is an hour old",
        path,
    )


def _open_csv(table: str, stream: Any, types: dict[str, pa.DataType]) -> Any:
    return pa_csv.open_csv(
        stream,
        parse_options=pa_csv.ParseOptions(delimiter="\t" if table.endswith(".tsv") else ",", newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True),
    )


def _s3_filesystem() -> Any:
    """pyarrow's S3 file system, with the endpoint that boto3 uses."""
    client = new_client()
    endpoint = client.meta.endpoint_url
    scheme, _, host = endpoint.partition("://")
    options = {} if "amazonaws.com" in host else {"endpoint_override": host, "scheme": scheme}
    return S3FileSystem(region=client.meta.region_name, **options)

"""Lists and reads tables of URLs: parquet, csv, tsv and jsonl; one file, a folder or a glob; local or s3.

In: `ingest.input`. Out: the tables' addresses, and their rows as a stream of record batches: memory does not grow with a
table's length.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from pipeline.config import IngestConfig
from pipeline.dataset.valid_text import exact_values, has_unknown_zone
from pipeline.errors import InputError, ReplacedError
from pipeline.ingest import text_tables
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_lines import ROW_TEXT
from pipeline.ingest.text_source import GZIP_SUFFIX
from pipeline.ingest.text_tables import TextTable, is_text_table, open_text_table, refuse_reserved
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.url_credentials import HIDDEN, USERINFO

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", *text_tables.SUFFIXES)
BATCH_ROWS = 16_384
REPLACED_ATTEMPTS = 8
READ_BYTES = 1 << 20
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
WRITTEN = re.compile(r"(|.*/)(?:manifests/[0-9]{8}|partitions/[^/]+|inputs/[^/]+)\.json")
"""Files by which a data set of jobs/ingest.py is known, also one that is not committed yet."""
_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
"""Lists and ranges as a shell and webdataset write them: {00000..00009}, {train,val}."""
NAMED_FILES = 3
"""Number of skipped files that are named."""


def list_tables(pattern: str) -> list[str]:
    """Addresses of the tables that a file, folder or glob names, sorted. Raises InputError if there are none."""
    return list_files(pattern, SUFFIXES, "ingest.input")


def list_files(pattern: str, suffixes: tuple[str, ...], key: str) -> list[str]:
    """Addresses of the files with one of the suffixes that a file, folder or glob names, sorted.

    Suffixes count in any case. Below a folder and in a glob, hidden files and those in hidden folders (`.name`, `_name`) are
    skipped, and so is a file that is there compressed, too. What was skipped is said once.

    Args:
        key: the configuration's key, for the message.

    Raises:
        InputError: there are none.
    """
    if not pattern:
        raise InputError(f"{key}: is empty; name a file, a folder or a glob ({', '.join(suffixes)})")
    root, wanted = _split_glob(pattern)
    storage = open_storage(root)
    data_sets: set[str] = set()
    if wanted is not None:
        paths = [item.path for item in storage.list("")]
        data_sets = _data_sets(paths)
        paths = [path for path in paths if fnmatch.fnmatchcase(path, wanted)]
        found = [path for path in paths if not _is_hidden(path, wanted)]
    elif _is_file(storage):
        paths = found = [""]
    else:
        paths = [item.path for item in storage.list("")]
        data_sets = _data_sets(paths)
        if suffixes == SUFFIXES:
            _refuse_table_formats(f"{key}={pattern}", paths)
        _say_what_is_skipped(f"{key}={pattern}", "only linked, and links are not followed", _linked_folders(storage), "folder")
        found = [path for path in paths if path.lower().endswith(suffixes) and not _is_hidden(path)]
    own = {path for path in found if suffixes == SUFFIXES and any(path.startswith(folder) for folder in data_sets)}
    found = [path for path in found if path not in own]
    twins = [path for path in found if path.lower().endswith(GZIP_SUFFIX) and path[: -len(GZIP_SUFFIX)] in found]
    found = [path for path in found if path not in twins]
    if not found and _BRACES.search(pattern):
        glob = _BRACES.sub("*", pattern)
        raise InputError(f"{key}={pattern}: there is no such file, and braces are not expanded; write a glob, as in '{glob}'")
    if not found:
        raise InputError(
            f"{key}={pattern}: there is no such file ({', '.join(suffixes)}); give a file, a folder or a glob that matches some"
        )
    for address in map(storage.address, found):
        if not address.lower().endswith(suffixes):
            raise InputError(f"{key}={address}: is not a supported file; use {', '.join(suffixes)}")
    if suffixes == SUFFIXES:
        keys = {part.partition("=")[0] for path in found for part in path.split("/")[:-1] if "=" in part}
        _say_what_folders_are_called(f"{key}={pattern}", tuple(sorted(keys)))
    _say_what_is_skipped(f"{key}={pattern}", "part of a data set of jobs/ingest.py", tuple(sorted(own)))
    others = tuple(sorted({*paths} - {*found, *twins, *own}))
    _say_what_is_skipped(f"{key}={pattern}", "no tables" if suffixes == SUFFIXES else f"no {'/'.join(suffixes)} files", others)
    _say_what_is_skipped(f"{key}={pattern}", "there without compression, too", tuple(twins))
    return sorted(map(storage.address, found))


def _data_sets(paths: Iterable[str]) -> set[str]:
    """Prefixes of what jobs/ingest.py has written below a folder, whose tables are no input of the next run."""
    roots = {found[1] for path in paths if (found := WRITTEN.fullmatch(path))}
    return {f"{root}{folder}/" for root in roots for folder in ("shards", "inputs", "retries")}


def _refuse_table_formats(subject: str, paths: Iterable[str]) -> None:
    """Raises InputError for a folder whose log says which files count: others hold rows that were deleted or replaced."""
    logs = {"_delta_log": "Delta Lake", ".hoodie": "Apache Hudi"}
    for path in paths:
        name = next((logs[part] for part in path.split("/") if part in logs), None)
        name = name or ("Apache Iceberg" if path.endswith(".metadata.json") and "metadata" in path.split("/") else None)
        if name is not None:
            raise InputError(
                f"{subject}: is a table of {name}, whose folder also holds files with rows that were deleted or replaced; "
                "export its current version as parquet files, and name their folder"
            )


def _linked_folders(storage: Storage) -> tuple[str, ...]:
    root = storage.local_path("")
    return (
        ()
        if root is None
        else tuple(path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_symlink() and path.is_dir())
    )


def _is_hidden(path: str, wanted: str = "") -> bool:
    """True if a part of a path starts with . or _, and the pattern does not ask for such a part."""
    asked = wanted.split("/")
    return any(
        part.startswith((".", "_")) and not any(one[:1] == part[0] and fnmatch.fnmatchcase(part, one) for one in asked)
        for part in path.split("/")
    )


@cache  # a job lists its input more than once
def _say_what_is_skipped(subject: str, reason: str, paths: tuple[str, ...], noun: str = "file") -> None:
    if paths:
        found = f"1 {noun} that is" if len(paths) == 1 else f"{len(paths):,} {noun}s that are"
        more = ", ..." if len(paths) > NAMED_FILES else ""
        logger.warning("%s: skipped %s %s: %s%s", subject, found, reason, ", ".join(paths[:NAMED_FILES]), more)


@cache
def _say_what_folders_are_called(subject: str, keys: tuple[str, ...]) -> None:
    if keys:
        shown = ", ".join(f"{key}=..." for key in keys)
        logger.warning(
            "%s: the values in the names of folders (%s) become no columns; write them into the tables", subject, shown
        )


def _is_file(storage: Storage) -> bool:
    """True if an address is that of a file or object itself."""
    folder, _, name = storage.uri.rpartition("/")
    return folder not in ("s3:/", "s3:") and open_storage(folder or "/").exists(name)


def read_batches(
    table: str, first_row: int = 0, batch_rows: int = BATCH_ROWS, names: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Reads a table's rows from `first_row` on, in order, in batches. Earlier row groups of a parquet file are not read.

    A batch of a text table has the column BAD_ROW if some of its rows cannot be read.

    Args:
        names: `ingest.column_names`.

    Raises:
        InputError: the table cannot be read.
    """
    for attempt in range(REPLACED_ATTEMPTS):
        try:
            for batch in _read_batches(table, first_row, batch_rows, names):
                yield batch
                first_row += batch.num_rows
            return
        except ReplacedError:  # a growing table was written again, with the same rows and more
            if attempt == REPLACED_ATTEMPTS - 1:
                raise


def _read_batches(table: str, first_row: int, batch_rows: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with readable(table):
        if is_seekable(table):
            batches, first_row = _open_parquet(table, first_row, batch_rows)
        else:
            batches = map(without_row_text, open_text_table(table, names).batches())
        for batch in batches:
            _ = batch.schema.names  # raises here, where it is caught, for names that are not UTF-8
            if first_row >= batch.num_rows:
                first_row -= batch.num_rows
                continue
            yield batch.slice(first_row)
            first_row = 0


@contextmanager
def readable(table: str) -> Iterator[None]:
    """Context in which what a table's reader raises becomes an InputError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"ingest.input={table}: there is no such table; give one that exists") from None
        reason = " ".join(str(error).split())
        raise InputError(f"ingest.input={table}: the table cannot be read ({reason}); fix it or remove it") from None


def read_chunks(table: str, sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Reads a table's rows in consecutive chunks of the given sizes; the last may be shorter."""
    return cut_chunks(read_batches(table), sizes)


def cut_chunks(batches: Iterable[pa.RecordBatch], sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Cuts batches into consecutive tables of the given sizes; the last may be shorter."""
    wanted = iter(sizes)
    held: list[pa.RecordBatch] = []
    rows, size = 0, next(wanted)
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            held.append(part)
            rows += part.num_rows
            batch = batch.slice(part.num_rows)
            if rows == size:
                yield _joined(held)
                held, rows, size = [], 0, next(wanted)
    if rows:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.Table:
    """One table; it has the column BAD_ROW only if some row cannot be read, however the batches were cut."""
    if all(batch.schema.equals(batches[0].schema) for batch in batches):
        table = pa.Table.from_batches(batches)
    else:
        table = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    is_good = BAD_ROW in table.column_names and table[BAD_ROW].null_count == table.num_rows
    return table.drop_columns(BAD_ROW) if is_good else table


def column_names(table: str) -> list[str] | None:
    """The table's column names, or None if it has no rows. Raises InputError if it cannot be read."""
    first = next((batch for batch in read_batches(table) if batch.num_rows), None)
    return None if first is None else [name for name in first.schema.names if name != BAD_ROW]


def check_columns(table: str, names: list[str], config: IngestConfig) -> None:
    """Raises InputError if the table lacks a required column, or has two of the same name."""
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        what = (
            f"two columns are named {double}; rename or drop one of them" if double else "two columns have no name; drop them"
        )
        raise InputError(f"ingest.input={table}: {what}")
    source = ("bytes_column", config.bytes_column) if config.bytes_column else ("url_column", config.url_column)
    for key, column in (source, ("caption_column", config.caption_column)):
        if column not in names:
            raise InputError(
                f"ingest.{key}={column}: {table} has the columns {', '.join(names)}; {_hint(table, names, key, column, config)}"
            )


def _hint(table: str, names: list[str], key: str, column: str, config: IngestConfig) -> str:
    """The remedy for a column that is missing."""
    if is_text_table(table) and not config.column_names and any("://" in name for name in names):
        count = len(names)
        known = [config.url_column, config.caption_column] if count == 2 else ["NAME"] * count
        return (
            f"the first line looks like a row: if there is no header, name the columns: ingest.column_names=[{','.join(known)}]"
        )
    if is_text_table(table) and re.fullmatch("sep=.?", names[0], re.IGNORECASE):
        return "its first line tells a spreadsheet how it is separated; remove the line"
    if len(names) == 1 and is_text_table(table):
        other = {
            "\t": "tabs: give it the suffix .tsv",
            ";": "semicolons: write it with commas",
            "|": "bars: write it with commas",
            ",": "commas: give it the suffix .csv",
        }
        found = next((remedy for sign, remedy in other.items() if sign in names[0]), None)
        if found is not None:
            return f"its columns seem to be separated by {found}"
    close = difflib.get_close_matches(column, names, n=1)
    return f"did you mean {as_typed(f'ingest.{key}', close[0])}?" if close else f"set ingest.{key} to one of them"


def as_typed(key: str, text: str) -> str:
    """KEY=TEXT as it is typed in a shell, so that its value, which is read as YAML, is this text."""
    is_plain = text == text.strip() and re.fullmatch(r"[^\W\d]\w*", text) and text.lower() not in YAML_WORDS
    return shlex.quote(f"{key}={text if is_plain else json.dumps(text, ensure_ascii=False)}")


def check_kinds(table: TextTable, config: IngestConfig) -> None:
    """Raises InputError if a jsonl table's URLs or captions would become JSON text: values of kinds without a common type."""
    for key, column in (("url_column", config.url_column), ("caption_column", config.caption_column)):
        if column in table.fields and table.fields[column].is_mixed:
            kinds = " in one line and ".join(table.fields[column].words())
            raise InputError(f"ingest.{key}={column}: {table.source.address} has {kinds} in another; write one kind of value")
        if column in table.fields and table.fields[column].is_json_text:
            raise InputError(
                f"ingest.{key}={column}: {table.source.address} has lists or objects there whose parts are of several kinds; "
                "write text, or a list of texts"
            )


def hash_rows(rows: pa.Table) -> str:
    """sha256 over the rows' contents, independent of how a file was read in blocks: detects edited rows."""
    digest = hashlib.sha256()
    if ROW_TEXT in rows.column_names:
        digest.update(b"\n".join(rows[ROW_TEXT].to_pylist()))
        return digest.hexdigest()
    if BAD_ROW in rows.column_names:  # that a row is bad, but not the words for it
        rows = rows.set_column(rows.schema.get_field_index(BAD_ROW), BAD_ROW, pc.is_valid(rows[BAD_ROW]))
    others = [field.name for field in rows.schema if not _is_plain(field.type) or has_unknown_zone(field.type)]
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(rows.drop_columns(others) if others else rows, sink)  # text does not depend on how batches were cut
    digest.update(sink.getvalue())
    for name in others:
        digest.update(repr(exact_values(rows.column(name))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def without_row_text(rows: Any) -> Any:
    """A table or batch without the column that is only there to be hashed."""
    return rows.drop_columns(ROW_TEXT) if ROW_TEXT in rows.schema.names else rows


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
    """(folder before the first wildcard, pattern relative to it), or None if there is none or such a path exists."""
    wild = re.search(r"[*?\[]", pattern)
    if wild is None or Path(pattern).exists():
        return pattern, None
    folder = pattern[: wild.start()].rpartition("/")[0]
    return folder or ".", pattern[len(folder) + 1 :] if folder else pattern


def is_seekable(table: str) -> bool:
    """True if a row range of the table can be read without the rows before it."""
    return not is_text_table(table)


def table_identity(table: str) -> str:
    """A string that changes when the table's file is written: size and time on disk, size and ETag in object storage."""
    folder, _, name = table.rpartition("/")
    storage = open_storage(folder)
    return f"{storage.size(name)}-{storage.etag(name)}"


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
    refuse_reserved(table, file.schema_arrow.names)
    group = 0
    while group < file.num_row_groups and first_row >= file.metadata.row_group(group).num_rows:
        first_row -= file.metadata.row_group(group).num_rows
        group += 1
    groups = range(group, file.num_row_groups)
    return file.iter_batches(batch_rows, row_groups=groups, use_threads=not far), first_row  # as in pipeline/storage/parquet.py

"""Reads tables of URLs: parquet, csv, tsv and jsonl, local or s3.

In: a table's address. Out: its rows as a stream of record batches: memory does not grow with a
table's length.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from pipeline.config import IngestConfig
from pipeline.errors import InputError, ReplacedError
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_kinds import WORDS
from pipeline.ingest.json_lines import ROW_TEXT, first_line_with
from pipeline.ingest.text_tables import TextTable, is_text_table, open_text_table, refuse_reserved
from pipeline.storage.address import open_storage
from pipeline.storage.url_credentials import HIDDEN, USERINFO

logger = logging.getLogger(__name__)

BATCH_ROWS = 16_384
REPLACED_ATTEMPTS = 8
READ_BYTES = 1 << 20
SPACE_BEFORE_QUOTE = re.compile(rb'(?:^|[,\r\n]) +"(?!")')
SPACED_QUOTES = re.compile(r' +".*" *', re.DOTALL)
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


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
    """A parquet table's column names, or None if it has no rows. Raises InputError if it cannot be read, or has one of ours."""
    first = next((batch for batch in read_batches(table) if batch.num_rows), None)
    if first is None:
        return None
    refuse_reserved(table, first.schema.names)
    return first.schema.names


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
            odd = next(kind for kind in (bool, dict, list) if kind in table.fields[column].types)
            line = first_line_with(table.source.blocks(table.start), column, odd)
            raise InputError(
                f"ingest.{key}={column}: {table.source.address} has {kinds} in another; write one kind of value (line {line} "
                f"is the first with {WORDS[odd]})"
            )
        if column in table.fields and table.fields[column].is_json_text:
            raise InputError(
                f"ingest.{key}={column}: {table.source.address} has lists or objects there whose parts are of several kinds; "
                "write text, or a list of texts"
            )


def check_spaces(table: TextTable, names: Sequence[str]) -> None:
    """Raises InputError if a csv has spaces before its quotes, which would stay in the text.

    Args:
        names: `ingest.column_names`.
    """
    if table.source.kind != ".csv" or not SPACE_BEFORE_QUOTE.search(next(table.source.blocks(), b"")):
        return
    spaced = [] if names else [name for name in table.columns if SPACED_QUOTES.fullmatch(name)]
    for batch in islice(table.batches(), 1):
        for name in table.columns:
            texts = [text for text in batch.column(name).to_pylist() if text and '"' in text]
            spaced += [name] * bool(texts and all(map(SPACED_QUOTES.fullmatch, texts)))
    if spaced:
        raise InputError(
            f"ingest.input={table.source.address}: a space stands before each quote of the column {spaced[0].strip()}, and "
            "quotes are quotes only right after a comma; write the table again: "
            "pandas.read_csv(OLD, skipinitialspace=True, dtype=str, keep_default_na=False).to_csv(NEW, index=False)"
        )


def without_row_text(rows: Any) -> Any:
    """A table or batch without the column that is only there to be hashed."""
    return rows.drop_columns(ROW_TEXT) if ROW_TEXT in rows.schema.names else rows


def hide_userinfo(rows: pa.Table, column: str) -> pa.Table:
    """A text table's rows with *** for user names and passwords in the URLs of a column, if it exists."""
    place = rows.schema.get_field_index(column)
    if place < 0 or not pa.types.is_string(rows.schema.types[place]):
        return rows
    return rows.set_column(place, column, pc.replace_substring_regex(rows.column(place), USERINFO, HIDDEN))


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
    group = 0
    while group < file.num_row_groups and first_row >= file.metadata.row_group(group).num_rows:
        first_row -= file.metadata.row_group(group).num_rows
        group += 1
    groups = range(group, file.num_row_groups)
    return file.iter_batches(batch_rows, row_groups=groups, use_threads=not far), first_row  # as in pipeline/storage/parquet.py

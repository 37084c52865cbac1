"""The one reader of text tables: csv, tsv and jsonl, also compressed.

In: a table's address. Out: its columns, and its rows as record batches with two reserved columns: BAD_ROW (the error of a row
that cannot be read) and, for jsonl, ROW_TEXT (what its hash is made from). The rules are in docs/decisions/0018-tables.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.ingest.delimited import BAD_ROW, DelimitedReader, Dialect, IncompleteError, Record, count_lines
from pipeline.ingest.json_kinds import Kind
from pipeline.ingest.json_lines import MOST_COLUMNS, ROW_TEXT, first_line_beyond, json_batches, parse_lines, settle
from pipeline.ingest.text_source import BOM, GZIP_SUFFIX, TextSource, open_source, say_that_a_line_waits
from pipeline.ingest.tsv_quotes import quotes_of_tsv

JSON_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = tuple(suffix + end for suffix in (".csv", ".tsv", *JSON_SUFFIXES) for end in ("", GZIP_SUFFIX))
READER, READER_QUOTED, READER_PLAIN = "2", "2-quoted", "2-plain"
"""Versions of this reader, for partition records: for tables that can be read in one way only, for tsv whose quotes are quotes,
and for tsv whose quotes are ordinary characters. A table that was begun in one way is continued in it."""
HEADER_BYTES = 1 << 20
"""Longest header."""


@dataclass(frozen=True)
class TextTable:
    """An open text table.

    Attributes:
        columns: names of the columns; empty if the table has neither a header nor a row.
        reader: the version of this reader, as partition records hold it.
        dialect: None for jsonl.
        fields: the kinds of a jsonl table's fields.
        start: place of the first row in the (decompressed) file.
        line: number of the first row's line.
        is_clean: every line of a jsonl can be read.
        is_plain: every line of a jsonl is plain, as json_lines.py has it.
    """

    source: TextSource
    columns: tuple[str, ...]
    reader: str
    dialect: Dialect | None
    fields: dict[str, Kind]
    start: int
    line: int
    is_clean: bool = False
    is_plain: bool = False

    def has_rows(self) -> bool:
        """True if there is a row to be read."""
        return next(self.batches(), None) is not None

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows between two places at which rows begin. Skips a last line that may still be written."""
        start, line = max(start, self.start), self.line
        if start > self.start:
            line += sum(map(count_lines, self.source.blocks(self.start, start)))
        complete = self.source.settled or stop is not None
        blocks = self.source.blocks(start, stop)
        if self.dialect is None:
            waits = lambda: say_that_a_line_waits(self.source.address)  # noqa: E731
            lines = parse_lines(blocks, complete, line, waits, self.is_clean, self.is_plain)
            yield from json_batches(lines, self.fields)
        elif self.columns:
            reader = DelimitedReader(self.dialect, self.columns, complete, line)
            yield from reader.batches(blocks)
            if reader.unread:
                say_that_a_line_waits(self.source.address)


def is_delimited(address: str) -> bool:
    """True if an address is that of a csv or tsv file, which may have no header."""
    return is_text_table(address) and not address.lower().removesuffix(GZIP_SUFFIX).endswith(JSON_SUFFIXES)


def is_text_table(address: str) -> bool:
    """True if an address is that of a csv, tsv or jsonl file, by its suffix."""
    return address.lower().endswith(SUFFIXES)


def open_text_table(address: str, names: Sequence[str] = (), held_reader: str = READER) -> TextTable:
    """Opens a text table as it is now: its header, its quotes (tsv) and its types (jsonl) are settled over the whole file.

    Args:
        names: names of the columns, for a csv or tsv table without a header.
        held_reader: the reader of rows that the data set holds; its reading of quotes is kept.

    Raises:
        InputError: the file is not a table of its suffix, or none of its first rows can be read.
        FileNotFoundError: there is no such file.
    """
    source = open_source(address)
    head = source.head(HEADER_BYTES)
    start = len(BOM) if head.startswith(BOM) else 0
    if source.kind in JSON_SUFFIXES:
        return _open_json(source, head[start:], start)
    whole = len(head) < HEADER_BYTES
    delimiter = b"," if source.kind == ".csv" else b"\t"
    quoted: bool | None = True
    if source.kind == ".tsv":
        fixed = {READER_QUOTED: True, READER_PLAIN: False}
        quoted = fixed[held_reader] if held_reader in fixed else quotes_of_tsv(source, start, head[start:], not names)
    reader = READER if source.kind == ".csv" or quoted is None else READER_QUOTED if quoted else READER_PLAIN
    dialect = Dialect(delimiter, bool(quoted))
    place, line = _skip_empty_lines(head, start)
    try:
        first = dialect.split(head, place, whole and source.settled)
    except IncompleteError:
        if not whole:
            raise InputError(f"ingest.input={address}: line {line} is longer than 1 MiB; is this the header?") from None
        if place < len(head):
            say_that_a_line_waits(address)
        return TextTable(source, (), reader, dialect, {}, start, 1)
    ends_with_cr = head[: first.stop].endswith(b"\r")
    dialect = replace(dialect, ends_with_cr=ends_with_cr)
    if place == len(head):
        return TextTable(source, (), reader, dialect, {}, start, 1)
    if names:
        _check_first_row(address, names, first, line)
        table = TextTable(source, tuple(names), reader, dialect, {}, start, 1)
    else:
        columns = _header(address, first, line)
        line += count_lines(head[place : first.stop])
        table = TextTable(source, columns, reader, dialect, {}, first.stop, line)
    refuse_reserved(address, table.columns)
    _check_first_rows(table)
    return table


def refuse_reserved(address: str, names: Sequence[str]) -> None:
    """Raises InputError if a column has a name of this reader's own columns."""
    for name in (BAD_ROW, ROW_TEXT):
        if name in names:
            raise InputError(f"ingest.input={address}: has a column {name}, a name that is reserved; rename the column")


def _open_json(source: TextSource, head: bytes, start: int) -> TextTable:
    if head.lstrip().startswith(b"["):
        raise InputError(f"ingest.input={source.address}: is one JSON array; write one object per line: jq -c '.[]' OLD > NEW")
    settled = settle(parse_lines(source.blocks(start), source.settled))
    fields = settled.fields
    if settled.error and not fields:
        raise InputError(
            f"ingest.input={source.address}: no line is a JSON object ({settled.error}); write one object per line"
        )
    if len(fields) > MOST_COLUMNS:
        line, name = first_line_beyond(source.blocks(start), MOST_COLUMNS)
        raise InputError(
            f"ingest.input={source.address}: has more than {MOST_COLUMNS:,} columns (line {line} adds {name!r}), and a "
            "table has the same columns in each row; put keys that differ from line to line into one object, as in "
            '{"url": ..., "caption": ..., "more": {...}}, which is kept as text'
        )
    refuse_reserved(source.address, tuple(fields))
    return TextTable(source, tuple(fields), READER, None, fields, start, 1, not settled.error, settled.is_plain)


def _skip_empty_lines(head: bytes, place: int) -> tuple[int, int]:
    """(place, number) of the first line that is not empty."""
    rest = head[place:].lstrip(b"\r\n")
    stop = len(head) - len(rest)
    return stop, 1 + count_lines(head[place:stop])


def _header(address: str, first: Record, line: int) -> tuple[str, ...]:
    problem = first.error
    if not problem:
        try:
            return tuple(field.decode() for field, _ in first.fields)
        except UnicodeDecodeError:
            problem = "its text is not UTF-8; convert the file: iconv -f ENCODING -t UTF-8 OLD > NEW"
    raise InputError(f"ingest.input={address}: line {line}, the header, cannot be read: {problem}")


def _check_first_row(address: str, names: Sequence[str], first: Record, line: int) -> None:
    """Raises InputError if the names of the columns do not fit a table."""
    if first.error:
        return
    if len(first.fields) != len(names):
        raise InputError(
            f"ingest.column_names={list(names)}: names {len(names)} columns, and line {line} of {address} has "
            f"{len(first.fields)} fields; name each column"
        )
    if [field for field, _ in first.fields] == [name.encode() for name in names]:
        raise InputError(f"ingest.column_names={list(names)}: are the header of {address}; remove the key: it has a header")


def _check_first_rows(table: TextTable) -> None:
    """Raises InputError if none of the first rows can be read: the table is not what its header or suffix says."""
    first = next(table.batches(), None)
    if first is None or BAD_ROW not in first.schema.names or first.column(BAD_ROW).null_count:
        return
    raise InputError(
        f"ingest.input={table.source.address}: the table cannot be read (none of its first {first.num_rows} rows; "
        f"{first.column(BAD_ROW)[0].as_py()}); fix it or remove it"
    )

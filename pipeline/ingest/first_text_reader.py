"""The first reader of text tables, kept to recognise the rows that it has read.

In: a csv, tsv or jsonl table of which a data set holds rows that were hashed over the values of this reader. Out: those values
again, and the place in the file where the rows end, from which pipeline/ingest/text_tables.py reads the later rows. This reader
reads no new row: it reads "NA" as null and text that looks like a date as a date, takes the quotes of a tsv for quotes, and
types a jsonl by its first block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from pipeline.ingest.delimited import LINE_END, Dialect, IncompleteError
from pipeline.ingest.text_source import BOM, TextSource
from pipeline.ingest.text_tables import JSON_SUFFIXES, TextTable

READER = ""
"""This reader's name in partition records, which have no name for it."""


def first_batches(source: TextSource, stop: int) -> Iterator[pa.RecordBatch]:
    """The rows up to a place in the file, as this reader reads them."""
    if stop == 0:
        return
    if source.kind in JSON_SUFFIXES:
        yield from pa_json.open_json(source.open(0, stop))
        return
    names = _open_csv(source, stop, {}).schema.names
    # All columns as text: a type inferred from the first block may not fit the last.
    yield from _open_csv(source, stop, dict.fromkeys(names, pa.string()))


def _open_csv(source: TextSource, stop: int, types: dict[str, pa.DataType]) -> Any:
    return pa_csv.open_csv(
        source.open(0, stop),
        parse_options=pa_csv.ParseOptions(delimiter="\t" if source.kind == ".tsv" else ",", newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True),
    )


def ends_of_rows(source: TextSource, wanted: Sequence[int]) -> dict[int, int]:
    """The places in the file where this reader's first `n` rows end, for each wanted `n`; those beyond the end are skipped.

    The places are found by lexing as this reader does. They are proven by what is read up to them: as many rows, with the
    recorded hashes.
    """
    ends = _line_ends(source) if source.kind in JSON_SUFFIXES else _record_ends(source)
    places = {}
    targets = sorted(set(wanted))
    for count, place in enumerate(ends):
        if count == targets[0]:
            places[targets.pop(0)] = place
            if not targets:
                break
    return places


def _line_ends(source: TextSource) -> Iterator[int]:
    """0, then the end of each line that is not empty."""
    yield 0
    place, rest = 0, b""
    for block in chain(source.blocks(), [b""]):
        lines = (rest + block).splitlines(keepends=True)
        rest = lines.pop() if lines and block else b""
        for line in lines:
            place += len(line)
            if line.strip():
                yield place


def _record_ends(source: TextSource) -> Iterator[int]:
    """The end of the header, then that of each record."""
    dialect = Dialect(b"\t" if source.kind == ".tsv" else b",", True)
    place, rest, start = 0, b"", True
    for block in chain(source.blocks(), [b""]):
        buffer, used = rest + block, 0
        if start and buffer.startswith(BOM):
            used = len(BOM)
        start = False
        while used < len(buffer):
            try:
                record = dialect.split(buffer, used, not block)
            except IncompleteError:
                break
            if buffer[used : record.stop].strip(b"\r\n"):
                yield place + record.stop
            used = record.stop
        place, rest = place + used, buffer[used:]


def swallowed_lines(source: TextSource, table: TextTable, stop: int, limit: int = 3) -> list[tuple[int, int]]:
    """The first (line, last line) of rows of this reader that the table's reader reads as several rows."""
    if table.dialect is None:
        return []
    dialect = Dialect(table.dialect.delimiter, True)
    found: list[tuple[int, int]] = []
    line, rest = 1, b""
    for block in chain(source.blocks(0, stop), [b""]):
        buffer, used = rest + block, 0
        while used < len(buffer) and len(found) < limit:
            try:
                record = dialect.split(buffer, used, not block)
            except IncompleteError:
                break
            text = buffer[used : record.stop]
            lines = [part for part in LINE_END.split(text) if part]
            if len(lines) > 1 and (record.error or not table.dialect.quoted):
                found.append((line, line + len(lines) - 1))
            line += len(LINE_END.findall(text))
            used = record.stop
        rest = buffer[used:]
    return found

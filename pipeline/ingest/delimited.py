"""Reads csv and tsv: RFC 4180, and tsv without quotes. All values are text; only an empty field is null.

In: blocks of bytes. Out: record batches of text columns. A record that breaks the rules is one row with nulls and its error in
the column BAD_ROW; the lines after it are read.

pyarrow parses what a check of the quotes' places shows to be plain; everything else is split here, line by line, by the same
rules. Neither the rows nor their errors depend on how the file was cut into blocks.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipeline.ingest.swallowed_rows import are_alike, has_swallowed_rows

BAD_ROW = "rayclip:bad_row"
"""Reserved column of rows that cannot be read: the reason. The row's other columns are null. Good rows have null here."""
HOLE = bytes(8)
"""Zeros in a text table: a copy whose space was allocated, and of which the rest was not written."""
LONGEST_RECORD_BYTES = 64 << 20
"""A quote that is not closed within this length is not a quote around lines, but an error of its own line."""

QUOTED = re.compile(rb'"([^"]*+(?:""[^"]*+)*+)"')  # possessive: half of a doubled quote never closes a field
LINE_END = re.compile(rb"\r\n|\n|\r")


class IncompleteError(Exception):
    """The buffer ends before the record does."""


@dataclass(frozen=True)
class Record:
    """One record: its fields as (bytes, was quoted), where it ends, and its error, if it breaks the rules of quoting.

    Attributes:
        stop: place after the record's line end. For an error: where a reader that accepts the record continues.
    """

    fields: list[tuple[bytes, bool]]
    stop: int
    error: str = ""


@dataclass(frozen=True)
class Dialect:
    """Dialect of a table.

    Attributes:
        quoted: quotes around a field are quotes, and not ordinary characters.
        ends_with_cr: lines end with \\r alone; otherwise such a \\r ends a line only if what follows it is a row as well.
    """

    delimiter: bytes
    quoted: bool
    ends_with_cr: bool = True

    @cached_property
    def unquoted(self) -> re.Pattern[bytes]:
        return re.compile(b"[^" + self.delimiter + b"\r\n]*")

    def split(self, buffer: bytes, start: int, complete: bool) -> Record:
        """Splits the record at `start`. Raises IncompleteError if more bytes, which may follow, can change it."""
        line_end = LINE_END.search(buffer, start)
        if line_end is None and not complete:
            raise IncompleteError
        if line_end is not None and line_end.end() == len(buffer) and line_end[0] == b"\r" and not complete:
            raise IncompleteError  # the second half of \r\n may follow
        end, stop = (line_end.start(), line_end.end()) if line_end else (len(buffer), len(buffer))
        line = buffer[start:end]
        if not self.quoted or b'"' not in line:
            return Record([(field, False) for field in line.split(self.delimiter)], stop)
        return self._split_quoted(buffer, start, complete)

    def _split_quoted(self, buffer: bytes, place: int, complete: bool) -> Record:
        fields: list[tuple[bytes, bool]] = []
        error = ""
        while True:
            if buffer[place : place + 1] == b'"':
                quoted = QUOTED.match(buffer, place)
                if quoted is None or (quoted.end() == len(buffer) and not complete):
                    if not complete:
                        raise IncompleteError
                    return Record(fields, len(buffer), "a quote is not closed")
                tail = self.unquoted.match(buffer, quoted.end())
                assert tail is not None  # it matches the empty string
                error = error or ("text follows a closing quote" if tail[0] else "")
                fields.append((quoted[1].replace(b'""', b'"') + tail[0], True))
                place = tail.end()
            else:
                plain = self.unquoted.match(buffer, place)
                assert plain is not None
                fields.append((plain[0], False))
                place = plain.end()
            after = buffer[place : place + 2]
            if after[:1] == self.delimiter:
                place += 1
                continue
            if len(after) < 2 and not complete and after != b"\n":
                raise IncompleteError
            return Record(fields, place + (2 if after == b"\r\n" else len(after[:1])), error)


@dataclass
class DelimitedReader:
    """Turns a stream of blocks, which starts at a record, into record batches.

    Attributes:
        complete: the stream ends where the table ends; otherwise its last record may still be written, and is skipped.
        line: number of the line that is read next.
        unread: True once the end of the stream was skipped.
    """

    dialect: Dialect
    names: Sequence[str]
    complete: bool
    line: int = 1
    unread: bool = False

    def batches(self, blocks: Iterator[bytes]) -> Iterator[pa.RecordBatch]:
        buffer = b""
        for block in blocks:
            buffer += block
            cut = length_of_records(buffer, self.dialect)
            if cut is None or (cut == 0 and len(buffer) >= LONGEST_RECORD_BYTES):
                used = yield from self._split_here(buffer, False)
            elif cut:
                yield from self._parse(buffer[:cut])
                used = cut
            else:
                continue
            buffer = buffer[used:]
        if buffer.endswith(b"\r"):
            buffer += b"\n"  # the line has ended, whether or not the second half of \r\n follows
        while buffer:
            used = yield from self._split_here(buffer, self.complete)
            buffer = buffer[used:]
            if not self._quote_is_alone(buffer):
                break
            first = LINE_END.search(buffer)
            assert first is not None
            yield self._error_row("a quote is not closed")
            buffer = buffer[first.end() :]
        self.unread = bool(buffer)

    def _quote_is_alone(self, rest: bytes) -> bool:
        """True if the lines after the first, at the end of a file that may grow, are whole rows.

        Then the first line's quote is an error of its own, and not the start of a field of several lines.
        """
        lines = [line for line in LINE_END.split(rest)[1:-1] if line]
        return bool(lines) and all(
            len(record.fields) == len(self.names) and not record.error
            for record in (self.dialect.split(line, 0, True) for line in lines)
        )

    def _error_row(self, error: str) -> pa.RecordBatch:
        batch = text_batch(self.names, [[None] * len(self.names)], [f"line {self.line}: {error}"])
        self.line += 1
        return batch

    def _parse(self, block: bytes) -> Iterator[pa.RecordBatch]:
        """Parses whole records whose quotes are in plain places."""
        if HOLE in block:
            yield from self._split_here(block, True)
            return
        # pyarrow would drop a BOM, although the block is not the file's beginning, and ends lines at \r
        if block.startswith(b"\xef\xbb\xbf") or (not self.dialect.ends_with_cr and block.count(b"\r") > block.count(b"\r\n")):
            yield from self._split_here(block, True)
            return
        quote: str | bool = '"' if self.dialect.quoted else False
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block),
                read_options=pa_csv.ReadOptions(column_names=self._places, use_threads=False, block_size=len(block) + 1),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.dialect.delimiter.decode(),
                    quote_char=quote,
                    newlines_in_values=self.dialect.quoted,
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(self._places, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:  # a row with another number of fields, text that is not UTF-8, or nothing but empty lines
            yield from self._split_here(block, True)
            return
        if self.dialect.quoted and self._has_swallowed_rows(table):
            yield from self._split_here(block, True)
            return
        self.line += count_lines(block)
        yield from table.rename_columns(list(self.names)).to_batches()

    def _has_swallowed_rows(self, table: pa.Table) -> bool:
        """True if a field of several lines holds a row of the table."""
        for column in table.columns:
            several = pc.match_substring_regex(column, "[\\r\\n]").fill_null(False)
            if pc.any(several).as_py() and any(
                any(swallowing_fields([(value or "").encode() for value in row.values()], self.dialect.delimiter))
                for row in table.filter(several).to_pylist()
            ):
                return True
        return False

    @cached_property
    def _places(self) -> list[str]:
        return [str(place) for place in range(len(self.names))]

    def _split_here(self, buffer: bytes, complete: bool) -> Generator[pa.RecordBatch, None, int]:
        """Splits records one by one. Returns the number of bytes that it has used."""
        rows: list[list[str | None]] = []
        errors: list[str | None] = []
        place = 0
        while place < len(buffer):
            try:
                record = self._next(buffer, place, complete)
            except IncompleteError:
                break
            if record.fields or record.error:
                error = record.error
                values: list[str | None] = []
                if not error:
                    try:
                        values = [field.decode() if field or quoted else None for field, quoted in record.fields]
                    except UnicodeDecodeError as fault:
                        error = f"the text is not UTF-8 (byte 0x{fault.object[fault.start]:02x})"
                rows.append([None] * len(self.names) if error else values)
                errors.append(f"line {self.line}: {error}" if error else None)
            self.line += count_lines(buffer[place : record.stop])
            place = record.stop
        if rows:
            yield text_batch(self.names, rows, errors)
        return place

    def _next(self, buffer: bytes, place: int, complete: bool) -> Record:
        """The next record, an error record of one line, or a record without fields for an empty line."""
        far = len(buffer) - place >= LONGEST_RECORD_BYTES
        if far and LINE_END.search(buffer, place) is None:
            raise pa.ArrowInvalid(f"line {self.line} is longer than {LONGEST_RECORD_BYTES >> 20} MiB")
        record = self.dialect.split(buffer, place, complete or far)
        if record.stop - place <= 2 and not buffer[place : record.stop].strip(b"\r\n"):
            return Record([], record.stop)
        if buffer.find(HOLE, place, record.stop) >= 0:
            return Record([], record.stop, "zeros stand in the line: a part of the file was never written")
        if record.error:  # the quote is an error of its line: the lines after it are read
            line_end = LINE_END.search(buffer, place)
            return Record([], line_end.end() if line_end else len(buffer), record.error)
        if len(record.fields) != len(self.names):
            fields = "1 field" if len(record.fields) == 1 else f"{len(record.fields)} fields"
            return Record([], record.stop, f"the line has {fields}, and the table {len(self.names)} columns")
        if any(swallowing_fields([field for field, _ in record.fields], self.dialect.delimiter)):
            line_end = LINE_END.search(buffer, place)
            assert line_end is not None  # the field has several lines
            return Record([], line_end.end(), "a quote reaches over lines that are rows; double it, or quote the field")
        if not self.dialect.ends_with_cr and _stops_at_cr(buffer, record):
            return self._whole_line(buffer, record, complete or far)
        return record

    def _whole_line(self, buffer: bytes, record: Record, complete: bool) -> Record:
        """A record that a \\r ends, in a table whose lines end otherwise: an error, unless the rest of the line is rows."""
        fields, part = [field for field, _ in record.fields], record
        while _stops_at_cr(buffer, part):
            part = self.dialect.split(buffer, part.stop, complete)
            if part.error or not are_alike(fields, [field for field, _ in part.fields]):
                line_end = buffer.find(b"\n", part.stop - 1)
                if line_end < 0 and not complete:
                    raise IncompleteError
                stop = line_end + 1 if line_end >= 0 else len(buffer)
                return Record([], stop, "a carriage return stands in the line; remove it, or quote the field")
        return record


def _stops_at_cr(buffer: bytes, record: Record) -> bool:
    return buffer[record.stop - 1 : record.stop] == b"\r" and record.stop < len(buffer)


def swallowing_fields(fields: Sequence[bytes], delimiter: bytes) -> Iterator[bool]:
    """For each field of several lines: True if it has swallowed rows."""
    for place, field in enumerate(fields):
        if b"\n" in field or b"\r" in field:
            yield has_swallowed_rows(fields[:place], field, fields[place + 1 :], delimiter)


def length_of_records(buffer: bytes, dialect: Dialect) -> int | None:
    """Length of the buffer's whole records; 0 if there is none; None if its quotes are not in plain places."""
    end = buffer.rfind(b"\n") + 1
    if dialect.ends_with_cr:
        end = max(end, buffer.rfind(b"\r", 0, len(buffer) - 1) + 1)
    if buffer[end - 1 : end + 1] == b"\r\n":
        end += 1
    if not dialect.quoted or b'"' not in buffer[:end]:
        return end
    data = np.frombuffer(buffer, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    ends = np.flatnonzero(data[:end] == ord("\n")) + 1
    if not len(ends):
        return None  # lines end with \r
    whole = ends[np.searchsorted(quotes, ends) % 2 == 0]
    if not len(whole):
        return 0 if quotes_are_plain(data, quotes, dialect.delimiter) else None
    end = int(whole[-1])
    return end if quotes_are_plain(data[:end], quotes[: np.searchsorted(quotes, end)], dialect.delimiter) else None


def quotes_are_plain(data: np.ndarray, quotes: np.ndarray, delimiter: bytes) -> bool:
    """True if each quote opens a field, closes one, or is doubled within one, as RFC 4180 has it.

    Args:
        data: records; a quote may be open at the end.
        quotes: the places of all quotes in them.
    """
    if not len(quotes):
        return True
    around = np.concatenate(([ord("\n")], data, [ord("\n")]))  # place p of the data is p + 1 here
    allowed = np.zeros(256, bool)
    allowed[[ord("\n"), ord("\r"), ord('"'), delimiter[0]]] = True
    before, after = around[quotes[0::2]], around[quotes[1::2] + 2]
    return bool(allowed[before].all() and allowed[after].all())


def count_lines(block: bytes) -> int:
    """Number of line ends: \\n, \\r\\n or \\r."""
    lines = block.count(b"\n")
    return lines + block.count(b"\r") - block.count(b"\r\n") if b"\r" in block else lines


def text_batch(names: Sequence[str], rows: list[list[str | None]], errors: list[str | None]) -> pa.RecordBatch:
    """A batch of text columns, with BAD_ROW if a row has an error."""
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(len(names))]
    names = list(names)
    if any(errors):
        columns.append(pa.array(errors, pa.string()))
        names.append(BAD_ROW)
    return pa.RecordBatch.from_arrays(columns, names=names)

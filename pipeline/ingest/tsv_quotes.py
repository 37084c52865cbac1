"""Decides for a whole tsv file whether its quotes are quotes or ordinary characters.

In: a file. Out: True for quotes as csv has them, False for ordinary characters, None if no field begins with a quote. Quotes
are quotes if a name in the header is quoted (without a header: all of the first line), as writers do that quote all text; or if
every field that begins with a quote is quoted as RFC 4180 has it, and at least one of them holds a tab, a line break or a
doubled quote, without which it would not have been quoted ("" alone is an empty text); or if, as in a spreadsheet's tsv, the
fields with a comma are quoted, all of them and no others, and lines end with a carriage return, as Excel's do. This last rule
may be wrong either way, so that the log says what it decides. Lines that are rows by themselves are never taken for the inside
of one field (`swallowed_rows.py`; without addresses: lines with the right number of tabs), nor are two fields of such a line.
"""

from __future__ import annotations

import logging
import re
from functools import cache

import numpy as np

from pipeline.ingest.delimited import LONGEST_RECORD_BYTES, Dialect, IncompleteError, length_of_records
from pipeline.ingest.swallowed_rows import LINE_END, has_addresses, has_swallowed_rows
from pipeline.ingest.text_source import TextSource

logger = logging.getLogger(__name__)

TAB = Dialect(b"\t", True)
SIGNS = (b'"', b"\t", b"\n", b"\r")
"""A field that holds one of these must be quoted."""
NEEDED, EMPTY, COMMA, OTHER = "needed", "empty", "comma", "other"
"""Kinds of quoted fields: those that must be quoted, those without text, those with a comma, which spreadsheets quote in a tsv
as well, and those of which only their writer knows why."""
FREE_COMMA = "free comma"
"""A comma outside quotes: no spreadsheet has written this file."""
JOINED = re.compile(rb"[\t\r\n]")
NUMBER = re.compile(rb"[-+0-9.eE]*")


def quotes_of_tsv(source: TextSource, start: int, head: bytes, has_header: bool) -> bool | None:
    """True if a tsv's quotes are quotes, False if they are ordinary characters, None if there are none.

    Args:
        start: place of the first line.
        head: the file's first bytes, from there.
    """
    try:
        head = head.lstrip(b"\r\n")
        first = TAB.split(head, 0, True)
    except IncompleteError:
        return None
    some = any(quoted for _, quoted in first.fields) and not first.error
    if some and (has_header or all(quoted or NUMBER.fullmatch(field) for field, quoted in first.fields)):
        return True
    tabs, seen, buffer = len(first.fields) - 1, set[str](), b""
    for block in source.blocks(start):
        buffer += block
        if b'"' not in buffer:
            seen.update((FREE_COMMA,) if b"," in buffer else ())
            buffer = buffer[buffer.rfind(b"\n") + 1 :]
            continue
        length = _consistent_records(buffer, tabs, False, seen)
        if length is None or (not length and len(buffer) >= LONGEST_RECORD_BYTES):
            return False
        buffer = buffer[length:]
    decision = _decide_at_end(buffer, seen, tabs, source.settled)
    if decision and seen - {FREE_COMMA} <= {COMMA, EMPTY} and COMMA in seen:
        decision = head[: first.stop].endswith((b"\r\n", b"\r"))
        _say_what_commas_decide(source.address, decision)
    return decision


@cache  # a plan opens a table more than once
def _say_what_commas_decide(address: str, quoted: bool) -> None:
    if quoted:
        reading = "are taken for a spreadsheet's and dropped, as its line ends are; if they belong to the text"
    else:
        reading = "stay in the text; if they do not belong to it"
    logger.warning(
        "%s: quotes stand around all fields with a comma and no others, and %s, save the table as csv or parquet",
        address,
        reading,
    )


def _decide_at_end(rest: bytes, seen: set[str], tabs: int, settled: bool) -> bool | None:
    """The decision for a file that ends with `rest`, whose last quote may be open."""
    if b'"' in rest and settled and _consistent_records(rest, tabs, True, seen) is None:
        return False
    if not settled:
        lines = rest[: rest.rfind(b"\n") + 1].splitlines() if b'"' in rest else []
        if lines and (not seen or (len(lines) > 1 and all(line.count(b"\t") == tabs for line in lines))):
            return False
    if b"," in rest and b'"' not in rest:
        seen.add(FREE_COMMA)
    kinds = seen - {FREE_COMMA}
    if NEEDED in kinds or not kinds:
        return True if kinds else None
    return OTHER not in kinds and not (COMMA in kinds and FREE_COMMA in seen)


def _consistent_records(buffer: bytes, tabs: int, complete: bool, seen: set[str]) -> int | None:
    """Length of the buffer's whole records; None if their quotes are not consistent. `seen` gets the quoted fields' kinds."""
    length = length_of_records(buffer, TAB)
    if length is not None and not complete:
        return length if _see_plain_records(buffer[:length], tabs, seen) else None
    place = 0
    while place < len(buffer):  # some quotes stand within a field, where they are characters in any case
        try:
            record = TAB.split(buffer, place, complete)
        except IncompleteError:
            break
        lines = buffer[place : record.stop].splitlines()
        fields = [field for field, _ in record.fields]
        joined = [n for n, (field, quoted) in enumerate(record.fields) if quoted and JOINED.search(field)]
        if record.error or any(_joins_rows(fields[:n], fields[n], fields[n + 1 :], lines, tabs) for n in joined):
            return None
        for field, quoted in record.fields:
            if quoted:
                seen.add(_kind(field))
            elif b"," in field:
                seen.add(FREE_COMMA)
        place = record.stop
    return place


def _kind(field: bytes) -> str:
    if not field:
        return EMPTY
    return NEEDED if any(sign in field for sign in SIGNS) else COMMA if b"," in field else OTHER


def _see_plain_records(records: bytes, tabs: int, seen: set[str]) -> bool:
    """Adds the kinds of quoted fields in whole, plainly quoted records to `seen`; False if one has swallowed rows or fields."""
    data = np.frombuffer(records, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    commas = np.flatnonzero(data == ord(","))
    if (np.searchsorted(quotes, commas) % 2 == 0).any():
        seen.add(FREE_COMMA)
    if not len(quotes):
        return True
    opened, closed = quotes[0::2], quotes[1::2]
    goes_on = opened[1:] == closed[:-1] + 1  # a doubled quote within a field
    starts, stops = opened[np.concatenate(([True], ~goes_on))], closed[np.concatenate((~goes_on, [True]))]
    doubled = np.searchsorted(quotes, stops) - np.searchsorted(quotes, starts) > 1
    breaks = np.flatnonzero((data == ord("\n")) | (data == ord("\r")))
    delimiters = np.flatnonzero(data == ord("\t"))
    long = np.searchsorted(breaks, starts) != np.searchsorted(breaks, stops)
    wide = np.searchsorted(delimiters, starts) != np.searchsorted(delimiters, stops)
    needed, empty = doubled | long | wide, stops - starts == 1
    comma = (np.searchsorted(commas, starts) != np.searchsorted(commas, stops)) & ~needed
    found = ((NEEDED, needed), (EMPTY, empty), (COMMA, comma), (OTHER, ~needed & ~empty & ~comma))
    seen.update(kind for kind, places in found if places.any())
    joined = long | wide
    places = zip(starts[joined].tolist(), stops[joined].tolist(), strict=True)
    return not any(_are_rows(records, start, stop, tabs) for start, stop in places)


def _joins_rows(before: list[bytes], content: bytes, after: list[bytes], lines: list[bytes], tabs: int) -> bool:
    """True if a quoted field joins what are rows, or two fields of a row, by themselves.

    Args:
        lines: the lines that the field touches, whole.
    """
    if len(lines) > 1 and has_addresses([*before, *after]):
        return has_swallowed_rows(before, content, after, b"\t")
    return all(line.count(b"\t") == tabs for line in lines if line.strip(b"\r\n"))


def _are_rows(records: bytes, start: int, stop: int, tabs: int) -> bool:
    """True if the quoted field between two quotes joins rows."""
    first, last = records.rfind(b"\n", 0, start) + 1, records.find(b"\n", stop)
    last = last if last >= 0 else len(records)
    before, after = records[first:start].split(b"\t")[:-1], records[stop + 1 : last].split(b"\t")[1:]
    return _joins_rows(before, records[start + 1 : stop], after, LINE_END.split(records[first:last]), tabs)

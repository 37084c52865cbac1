"""Decides for a whole tsv file whether its quotes are quotes or ordinary characters.

In: a file. Out: True for quotes as csv has them, False for ordinary characters, None if the file has no quotes. Quotes are
quotes if a name in the header is quoted (without a header: all of the first line), as writers do that quote all text; or if every field in the file
that begins with a quote is quoted as RFC 4180 has it, and is empty or holds a tab, a line break or a quote, without which no
writer would have quoted it. Lines that would be rows by themselves are never taken for the inside of one field.
"""

from __future__ import annotations

import re

import numpy as np

from pipeline.ingest.delimited import LONGEST_RECORD_BYTES, Dialect, IncompleteError, length_of_records
from pipeline.ingest.text_source import TextSource

TAB = Dialect(b"\t", True)
SIGNS = (b'"', b"\t", b"\n", b"\r")
"""A field that holds one of these must be quoted."""
NUMBER = re.compile(rb"[-+0-9.eE]*")


def quotes_of_tsv(source: TextSource, start: int, head: bytes, has_header: bool) -> bool | None:
    """True if a tsv's quotes are quotes, False if they are ordinary characters, None if there are none.

    Args:
        start: place of the first line.
        head: the file's first bytes, from there.
    """
    try:
        first = TAB.split(head.lstrip(b"\r\n"), 0, True)
    except IncompleteError:
        return None
    some = any(quoted for _, quoted in first.fields) and not first.error
    if some and (has_header or all(quoted or NUMBER.fullmatch(field) for field, quoted in first.fields)):
        return True
    tabs, closed, buffer = len(first.fields) - 1, False, b""
    for block in source.blocks(start):
        buffer += block
        if b'"' not in buffer:
            buffer = buffer[buffer.rfind(b"\n") + 1 :]
            continue
        found = _consistent_records(buffer, tabs, False)
        if found is None or (not found[0] and len(buffer) >= LONGEST_RECORD_BYTES):
            return False
        length, closed = found[0], closed or found[1]
        buffer = buffer[length:]
    return _decide_at_end(buffer, closed, tabs, source.settled)


def _decide_at_end(rest: bytes, closed: bool, tabs: int, settled: bool) -> bool | None:
    """The decision for a file that ends with `rest`, whose last quote may be open.

    Args:
        closed: there are quoted fields before, and all of them are consistent.
    """
    if b'"' not in rest:
        return True if closed else None
    if settled:
        found = _consistent_records(rest, tabs, True)
        return found is not None and (closed or found[1])
    lines = rest[: rest.rfind(b"\n") + 1].splitlines()
    if not lines:  # a line that is still being written
        return True if closed else None
    return closed and not (len(lines) > 1 and all(line.count(b"\t") == tabs for line in lines))


def _consistent_records(buffer: bytes, tabs: int, complete: bool) -> tuple[int, bool] | None:
    """(length of the buffer's whole records, True if a field is quoted); None if the quotes are not consistent."""
    length = length_of_records(buffer, TAB)
    if length is not None and not complete:
        return (length, b'"' in buffer[:length]) if _are_needed(buffer[:length], tabs) else None
    place, some = 0, False
    while place < len(buffer):  # some quotes stand within a field, where they are characters in any case
        try:
            record = TAB.split(buffer, place, complete)
        except IncompleteError:
            break
        text = buffer[place : record.stop]
        is_needed = all(not field or any(sign in field for sign in SIGNS) for field, quoted in record.fields if quoted)
        lines = text.splitlines()
        if record.error or not is_needed or (len(lines) > 1 and all(line.count(b"\t") == tabs for line in lines)):
            return None
        some = some or any(quoted for _, quoted in record.fields)
        place = record.stop
    return place, some


def _are_needed(records: bytes, tabs: int) -> bool:
    """True if each quoted field in whole, plainly quoted records is empty or holds a tab, a line break or a quote."""
    data = np.frombuffer(records, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
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
    empty = stops - starts == 1  # "" is how some writers tell an empty text from null
    if not (doubled | long | wide | empty).all():
        return False
    return not any(
        _are_rows(records, int(start), int(stop), tabs) for start, stop in zip(starts[long], stops[long], strict=True)
    )


def _are_rows(records: bytes, start: int, stop: int, tabs: int) -> bool:
    """True if all lines that a quoted field touches have the table's number of fields by themselves."""
    first, last = records.rfind(b"\n", 0, start) + 1, records.find(b"\n", stop)
    lines = records[first : last if last >= 0 else None].split(b"\n")
    return all(line.count(b"\t") == tabs for line in lines)

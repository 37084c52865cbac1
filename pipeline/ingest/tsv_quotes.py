"""Decides for a whole tsv file whether its quotes are quotes or ordinary characters.

In: a file. Out: True for quotes as csv has them, False for ordinary characters, None if the file has no quotes. Quotes are
quotes if the first line (the header) is quoted as a whole, as writers do that quote all text; or if every quote in the file is
in a place where RFC 4180 allows it, and every quoted field is empty or holds a tab, a line break or a quote, without which no
writer would have quoted it. Lines that would be rows by themselves are never taken for the inside of one field.
"""

from __future__ import annotations

import re

import numpy as np

from pipeline.ingest.delimited import LONGEST_RECORD_BYTES, Dialect, IncompleteError, length_of_records
from pipeline.ingest.text_source import TextSource

TAB = Dialect(b"\t", True)
NUMBER = re.compile(rb"[-+0-9.eE]*")


def quotes_of_tsv(source: TextSource, start: int, head: bytes) -> bool | None:
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
    if some and all(quoted or NUMBER.fullmatch(field) for field, quoted in first.fields):
        return True
    tabs, closed, buffer = len(first.fields) - 1, False, b""
    for block in source.blocks(start):
        buffer += block
        if b'"' not in buffer:
            buffer = buffer[buffer.rfind(b"\n") + 1 :]
            continue
        length = length_of_records(buffer, TAB)
        if length is None or (not length and len(buffer) >= LONGEST_RECORD_BYTES):
            return False
        if not _are_needed(buffer[:length], tabs):
            return False
        closed = closed or b'"' in buffer[:length]
        buffer = buffer[length:]
    return _decide_at_end(buffer, closed, tabs, source.settled)


def _decide_at_end(rest: bytes, closed: bool, tabs: int, settled: bool) -> bool | None:
    """The decision for a file that ends with `rest`, whose last quote may be open.

    Args:
        closed: there are quotes before, and all of them are in plain places.
    """
    if b'"' not in rest:
        return True if closed else None
    if settled:
        rest += b"\n"
        return length_of_records(rest, TAB) == len(rest) and _are_needed(rest, tabs)
    lines = rest[: rest.rfind(b"\n") + 1].splitlines()
    if not lines:  # a line that is still being written
        return True if closed else None
    return closed and not (len(lines) > 1 and all(line.count(b"\t") == tabs for line in lines))


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

"""Finds quoted fields that have swallowed rows: a caption that begins with a stray quote, and a later one that ends with one.

In: one field of several lines, and the fields of its record. Out: True if a line within the field is a row of the table, with
an address where the record has its own. RFC 4180 allows such a field, but its lines are rows that stray quotes have joined.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ADDRESS = re.compile(
    rb"\s*(?:(?:[a-z][a-z0-9+.-]*:)?//|\.{0,2}/|[a-z]:\\)[^\r\n<>]+|[^\r\n<>]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)\s*",
    re.I,
)
"""A URL, a path, or the name of an image; all may hold spaces."""
LINE_END = re.compile(rb"\r\n|\n|\r")


def has_addresses(fields: Sequence[bytes]) -> bool:
    """True if a field is an address."""
    return any(map(ADDRESS.fullmatch, fields))


def are_alike(row: Sequence[bytes], other: Sequence[bytes]) -> bool:
    """True if `other` has as many fields as `row`, with addresses where `row` has them."""
    pairs = zip(row, other, strict=False)
    return len(row) == len(other) and all(ADDRESS.fullmatch(value) for field, value in pairs if ADDRESS.fullmatch(field))


def has_swallowed_rows(before: Sequence[bytes], content: bytes, after: Sequence[bytes], delimiter: bytes) -> bool:
    """True if a line within a quoted field is a row of the table.

    Args:
        before: the record's fields before this one.
        content: the field.
        after: the record's fields after it.
    """
    addresses = [place for place, field in enumerate([*before, b"", *after]) if ADDRESS.fullmatch(field)]
    lines = LINE_END.split(content) if addresses else []
    for number, line in enumerate(lines):
        first = len(before) if number == 0 else 0  # place of the line's first field in its row
        rest = len(after) if number == len(lines) - 1 else 0
        values = line.split(delimiter)
        if first + len(values) + rest != len(before) + 1 + len(after):
            continue
        if any(0 <= place - first < len(values) and ADDRESS.fullmatch(values[place - first]) for place in addresses):
            return True
    return False

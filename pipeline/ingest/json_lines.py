"""Reads JSON lines: one object per line, with each column's type settled over the whole file.

In: blocks of bytes. Out: record batches. A file is read twice, for the kinds of values in each field and for the rows: a field
may appear late, be null first, or be an integer here and a fraction there, and no type depends on how the file was cut into
blocks. Strings stay strings. A field whose values share no type is text: strings as they are written, numbers by their value,
anything else as JSON. A line that is no object is one row with nulls and its error in the column BAD_ROW.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import orjson
import pyarrow as pa

from pipeline.ingest.delimited import BAD_ROW, LONGEST_RECORD_BYTES

ROW_TEXT = "rayclip:row_text"
"""Reserved column: the line as it is written, from which the row's hash is made: settled types change when a file grows."""
SPACED_COLON = re.compile(rb'"[ \t]+:')
MANY_DIGITS = re.compile(rb"(?<![0-9.])[0-9]{19}")
"""orjson reads integers beyond 64 bits as fractions, so that lines with such a number are left to the json module."""
DIGITS_TO_ZEROS, ZEROS = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 19
EXACT_IN_DOUBLE = 1 << 53
MANY_FIELDS = 500
"""An object with more fields than this, nested ones included, is a mapping rather than a record, and is kept as JSON text."""
WORDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
Line = dict[str, Any] | str
"""A parsed line, or the error of a line that cannot be read."""


@dataclass
class Kind:
    """The kinds of values that a field has held so far.

    Attributes:
        types: Python's types of the values, without null.
        fields: kinds of an object's fields.
        element: kind of a list's elements.
        of_captions: numbers become text one by one, so that 5 beside 2.5 stays "5".
    """

    types: set[type] = field(default_factory=set)
    lowest: int = 0
    highest: int = 0
    fields: dict[str, Kind] = field(default_factory=dict)
    element: Kind | None = None
    of_captions: bool = False

    def see(self, values: list[Any]) -> None:
        """Takes more values of the field into account."""
        types = set(map(type, values))
        types.discard(type(None))
        self.types |= types
        if int in types:
            numbers = values if len(types) == 1 and None not in values else [value for value in values if type(value) is int]
            self.lowest, self.highest = min(self.lowest, min(numbers)), max(self.highest, max(numbers))
        if list in types:
            self.element = self.element or Kind()
            self.element.see(list(chain.from_iterable(value for value in values if type(value) is list)))
        if dict in types and len(self.fields) <= MANY_FIELDS:
            see_objects(self.fields, [value for value in values if type(value) is dict])

    def settled_type(self) -> pa.DataType | None:
        """The Arrow type that holds every value exactly; None if there is none but text."""
        if not self.types:
            return pa.null()
        if self.types == {int}:
            return self._integer_type()
        if self.types == {int, float} and not self.of_captions:
            return pa.float64() if self.lowest >= -EXACT_IN_DOUBLE and self.highest <= EXACT_IN_DOUBLE else None
        if len(self.types) > 1:
            return None
        if self.types == {list}:
            assert self.element is not None
            element = self.element.settled_type()
            return None if element is None else pa.list_(element)
        if self.types == {dict}:
            return self._struct_type()
        return {str: pa.string(), bool: pa.bool_(), float: pa.float64()}[next(iter(self.types))]

    def words(self) -> list[str]:
        """The kinds of the values, in words."""
        return sorted({WORDS[kind] for kind in self.types})

    @property
    def is_mixed(self) -> bool:
        """True if some values are lists, objects or truth values, and others are not."""
        return len(self.types) > 1 and bool(self.types & {list, dict, bool})

    @property
    def is_json_text(self) -> bool:
        """True if the values are lists or objects without a common type, so that their column holds JSON text."""
        return bool(self.types & {list, dict}) and self.settled_type() is None

    def _integer_type(self) -> pa.DataType | None:
        if self.lowest >= -(1 << 63) and self.highest < 1 << 63:
            return pa.int64()
        return pa.uint64() if self.lowest >= 0 and self.highest < 1 << 64 else None

    def _struct_type(self) -> pa.DataType | None:
        types = {name: kind.settled_type() for name, kind in self.fields.items()}
        if not types or None in types.values() or self._num_fields() > MANY_FIELDS:
            return None  # parquet has no objects without fields
        return pa.struct(list(types.items()))

    def _num_fields(self) -> int:
        nested = sum(kind._num_fields() for kind in self.fields.values())
        return len(self.fields) + nested + (self.element._num_fields() if self.element else 0)


def see_objects(fields: dict[str, Kind], objects: list[dict[str, Any]]) -> None:
    """Takes the objects' values into account; new fields are added in the order of their appearance."""
    for name in dict.fromkeys(chain.from_iterable(objects)):
        if name not in fields:
            fields[name] = Kind()
    for name, kind in fields.items():
        kind.see([value.get(name) for value in objects])


def parse_lines(
    blocks: Iterable[bytes],
    complete: bool,
    line: int = 1,
    waits: Callable[[], None] = lambda: None,
    unique_keys: bool = False,
) -> Iterator[tuple[list[bytes], list[Line]]]:
    """Cuts blocks into lines and parses them; empty lines are skipped.

    Args:
        complete: the last line is read even without a line break.
        line: number of the first line.
        waits: called if the last line was skipped.
        unique_keys: no object is known to have a key twice, so that this is not checked again.

    Yields:
        (lines, what they hold), a block at a time.
    """
    for block in whole_lines(blocks, complete, waits):
        lines = [text.strip() for text in block.split(b"\n")]
        texts = [text for text in lines if text]
        yield (
            texts,
            _parse_all(block, texts, unique_keys) or [_parse(text, number) for number, text in enumerate(lines, line) if text],
        )
        line += len(lines) - 1


def _parse_all(block: bytes, texts: list[bytes], unique_keys: bool) -> list[Line]:
    """The objects of a block's lines if orjson reads all of them exactly; otherwise empty."""
    if ZEROS in block.translate(DIGITS_TO_ZEROS) and any(map(_has_many_digits, texts)):
        return []
    try:
        parsed = list(map(orjson.loads, texts))
    except orjson.JSONDecodeError:
        return []
    if set(map(type, parsed)) != {dict}:
        return []
    if unique_keys:
        return parsed
    is_flat = block.count(b"{") == len(parsed)  # no object within another one
    return parsed if _num_colons(block) == (sum(map(len, parsed)) if is_flat else _num_keys(parsed)) else []


def _num_colons(text: bytes) -> int:
    """Number of colons behind quotes: one a key, and those within strings."""
    spaced = len(SPACED_COLON.findall(text)) if b'" ' in text or b'"\t' in text else 0
    return text.count(b'":') + spaced


def _num_keys(values: Iterable[Any]) -> int:
    """Number of keys in objects, and in the objects within them; of a key that is there twice, one is left."""
    objects = [value for value in values if type(value) is dict]
    inner = [value for value in chain.from_iterable(map(dict.values, objects)) if type(value) in (dict, list)]
    while lists := [value for value in inner if type(value) is list]:
        inner = [value for value in inner if type(value) is dict]
        inner += [value for value in chain.from_iterable(lists) if type(value) in (dict, list)]
    return sum(map(len, objects)) + (_num_keys(inner) if inner else 0)


def _repeated_key(text: bytes) -> str | None:
    """A key that an object of the line has twice: orjson and the json module would keep the last of its values."""
    found: list[str] = []

    def see(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            found.append(Counter(name for name, _ in pairs).most_common(1)[0][0])

    with contextlib.suppress(RecursionError):
        json.loads(text, strict=False, object_pairs_hook=see)
    return found[0] if found else None


def first_line_with(blocks: Iterable[bytes], name: str, kind: type) -> int:
    """Number of the first line whose field is of this type; 0 if there is none."""
    line = 1
    for block in whole_lines(blocks, True, lambda: None):
        for number, text in enumerate(block.split(b"\n"), line):
            value = _parse(text.strip(), number) if text.strip() else ""
            if type(value) is dict and type(value.get(name)) is kind:
                return number
        line += block.count(b"\n")
    return 0


def whole_lines(blocks: Iterable[bytes], complete: bool, waits: Callable[[], None]) -> Iterator[bytes]:
    """Joins blocks and cuts them after line ends, which become \\n. A last line without an end is skipped unless complete."""
    buffer: list[bytes] = []
    size = 0
    for block in blocks:
        end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1
        buffer.append(block[:end] if end else block)
        size += len(block)
        if end:
            yield _unified(b"".join(buffer))
            buffer, size = [block[end:]], len(block) - end
        elif size > LONGEST_RECORD_BYTES:
            raise pa.ArrowInvalid(f"a line is longer than {LONGEST_RECORD_BYTES >> 20} MiB")
    rest = _unified(b"".join(buffer))
    if rest and (complete or rest.endswith(b"\n")):
        yield rest
    elif rest:
        waits()


def _unified(block: bytes) -> bytes:
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block


def _has_many_digits(text: bytes) -> bool:
    """True if orjson may read an integer of a line as a fraction. The cheaper test comes first, by a factor of thirty."""
    return ZEROS in text.translate(DIGITS_TO_ZEROS) and MANY_DIGITS.search(text) is not None


def _parse(text: bytes, number: int) -> Line:
    """Parses a line; where orjson does not, as the json module does, which knows NaN and integers of any size."""
    try:
        if not _has_many_digits(text):
            return _checked(orjson.loads(text), text, number)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(text.decode(), strict=False)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as fault:
        return f"line {number}: the text is not UTF-8 (byte 0x{text[fault.start]:02x})"
    except UnicodeEncodeError:
        return f"line {number}: half of a surrogate pair is no text"
    except json.JSONDecodeError as fault:
        return f"line {number}: is not JSON ({fault.msg.lower()} at character {fault.pos + 1})"
    except (RecursionError, ValueError):
        return f"line {number}: is not JSON that can be read"
    return _checked(value, text, number)


def _checked(value: Any, text: bytes, number: int) -> Line:
    """A line's object, or its error."""
    if type(value) is not dict:
        return _not_an_object(value, number)
    repeated = _repeated_key(text) if _num_colons(text) != _num_keys([value]) else None
    return value if repeated is None else f"line {number}: has the key {json.dumps(repeated, ensure_ascii=False)} twice"


def _not_an_object(value: Any, number: int) -> str:
    name = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return f"line {number}: is {name[type(value)] if type(value) in name else 'a number'}, not an object"


def settle(parsed: Iterable[tuple[list[bytes], list[Line]]]) -> tuple[dict[str, Kind], str]:
    """(the kinds of all fields of a file, the error of its first line that cannot be read, or "" if all can be)."""
    fields: dict[str, Kind] = {}
    error = ""
    for _, lines in parsed:
        see_objects(fields, [line for line in lines if type(line) is dict])
        error = error or next((line for line in lines if type(line) is str), "")
    return fields, error


def json_batches(parsed: Iterable[tuple[list[bytes], list[Line]]], fields: dict[str, Kind]) -> Iterator[pa.RecordBatch]:
    """The rows as record batches of the settled types, with ROW_TEXT, and with BAD_ROW if a row has an error."""
    for texts, lines in parsed:
        if not lines:
            continue
        rows = [line for line in lines if type(line) is dict]
        is_whole = len(rows) == len(lines)
        if not is_whole:
            rows = [line if type(line) is dict else {} for line in lines]
        columns = [column_of([row.get(name) for row in rows], kind) for name, kind in fields.items()]
        names = list(fields)
        columns.append(pa.array(texts, pa.large_binary()))
        names.append(ROW_TEXT)
        if not is_whole:
            columns.append(pa.array([line if type(line) is str else None for line in lines], pa.string()))
            names.append(BAD_ROW)
        yield pa.RecordBatch.from_arrays(columns, names=names)


def column_of(values: list[Any], kind: Kind) -> pa.Array:
    """A column of a field's settled type; as text, if there is none."""
    settled = kind.settled_type()
    if settled is not None:
        return pa.array(values, settled)
    scalar = not kind.types & {list, dict}
    texts = [value if scalar and type(value) is str else _json_text(value) for value in values]
    return pa.array(texts, pa.string())


def _json_text(value: Any) -> str | None:
    """A value as JSON; None for null and for NaN, which is null in other words."""
    if value is None or value != value:
        return None
    if value in (math.inf, -math.inf):
        return str(value)
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

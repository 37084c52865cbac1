"""Reads JSON lines: one object per line, with each column's type settled over the whole file.

In: blocks of bytes. Out: record batches. A file is read twice, for the kinds of values in each field and for the rows: a field
may appear late, be null first, or be an integer here and a fraction there, and no type depends on how the file was cut into
blocks (`json_kinds.py`). Strings stay strings. A line that is no object is one row with nulls and its error in BAD_ROW.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from pipeline.ingest.delimited import BAD_ROW, LONGEST_RECORD_BYTES
from pipeline.ingest.json_kinds import Kind, see_objects, settle_columns

ROW_TEXT = "rayclip:row_text"
"""Reserved column: the line as it is written, from which the row's hash is made: settled types change when a file grows."""
SPACED_COLON = re.compile(rb'"[ \t]+:')
DIGITS = re.compile(rb"[0-9]*")
DIGITS_TO_ZEROS, ZEROS = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 19
DEEPEST = 200
"""Most objects and lists within each other: orjson writes up to 254, and the json module reads as far as the stack goes."""
TOO_DEEP = f"has more than {DEEPEST} objects or lists within each other"
BOM = b"\xef\xbb\xbf"
MOST_COLUMNS = 2000
"""A table with more columns holds data in the names of its columns."""
Line = dict[str, Any] | str
"""A parsed line, or the error of a line that cannot be read."""


@dataclass(frozen=True)
class Lines:
    """Consecutive lines that are not empty.

    Attributes:
        texts: the lines as they are written.
        values: what they hold.
        plain: the same if orjson has read all of them exactly; otherwise empty.
    """

    texts: list[bytes]
    values: list[Line]
    plain: list[dict[str, Any]]


def parse_lines(
    blocks: Iterable[bytes],
    complete: bool,
    line: int = 1,
    waits: Callable[[], None] = lambda: None,
    unique_keys: bool = False,
    is_plain: bool = False,
) -> Iterator[Lines]:
    """Cuts blocks into lines and parses them; empty lines are skipped.

    Args:
        complete: the last line is read even without a line break.
        line: number of the first line.
        waits: called if the last line was skipped.
        unique_keys: no object is known to have a key twice, so that this is not checked again.
        is_plain: all lines are known to be plain, so that nothing is checked again.

    Yields:
        The lines of one block after the other.
    """
    for block in whole_lines(blocks, complete, waits):
        lines = block.split(b"\n")
        is_dense = not lines[-1] and _is_dense(block)
        lines = lines if is_dense else [text.strip() for text in lines]
        texts = lines[:-1] if is_dense else [text for text in lines if text]
        parsed = _parse_at_once(block, len(texts)) if is_plain and is_dense else []
        parsed = parsed or _parse_all(block, texts, unique_keys, is_dense)
        values: list[Line] = [*parsed] or [_parse(text, number) for number, text in enumerate(lines, line) if text]
        yield Lines(texts, values, parsed)
        line += len(lines) - 1


def _parse_at_once(block: bytes, count: int) -> list[dict[str, Any]]:
    """The objects of a block whose lines are each known to be an object; empty if they are not."""
    try:
        parsed: list[Any] = orjson.loads(b"[%b]" % block[:-1].replace(b"\n", b","))
    except orjson.JSONDecodeError:
        return []
    return parsed if len(parsed) == count and set(map(type, parsed)) == {dict} else []


def _parse_all(block: bytes, texts: list[bytes], unique_keys: bool, is_dense: bool) -> list[dict[str, Any]]:
    """The objects of a block's lines if all are plain: read exactly by orjson, and without a key twice; otherwise empty."""
    if _has_many_digits(block):
        return []
    num_objects = block.count(b"{")
    # Each line begins with the only { that it has. So as many objects as lines, parsed at once, are those of the lines.
    parsed = _parse_at_once(block, len(texts)) if is_dense and num_objects == len(texts) else _parse_each(texts)
    if unique_keys or not parsed:
        return parsed
    if num_objects + block.count(b"[") >= len(parsed) + DEEPEST and any(map(_is_too_deep, texts, parsed)):
        return []
    is_flat = num_objects == len(parsed)  # no object within another one
    return parsed if _num_colons(block) == (sum(map(len, parsed)) if is_flat else _num_keys(parsed)) else []


def _parse_each(texts: list[bytes]) -> list[dict[str, Any]]:
    """The objects of lines; empty if one is none."""
    try:
        parsed: list[Any] = list(map(orjson.loads, texts))
    except orjson.JSONDecodeError:
        return []
    return parsed if set(map(type, parsed)) == {dict} else []


def _is_too_deep(text: bytes, value: Any) -> bool:
    """True if a line's value has more than DEEPEST objects and lists within each other."""
    if text.count(b"{") + text.count(b"[") <= DEEPEST:
        return False
    depth, inner = 0, [value]
    while inner := [one for one in inner if type(one) in (dict, list)]:
        depth += 1
        inner = list(chain.from_iterable(one.values() if type(one) is dict else one for one in inner))
    return depth > DEEPEST


def _is_dense(block: bytes) -> bool:
    """True if no line of a block is empty or has space around its braces, by a look at the bytes beside the line ends."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    return bool(data[0] == ord("{") and (data[ends - 1] == ord("}")).all() and (data[ends[:-1] + 1] == ord("{")).all())


def _num_colons(text: bytes) -> int:
    """Number of colons behind quotes: one a key, and those within strings."""
    data = np.frombuffer(text, np.uint8)
    after = data[np.flatnonzero(data[:-1] == ord('"')) + 1]
    spaced = len(SPACED_COLON.findall(text)) if (after == ord(" ")).any() or (after == ord("\t")).any() else 0
    return int(np.count_nonzero(after == ord(":"))) + spaced


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
    return next((number for number, value in _numbered(blocks) if type(value.get(name)) is kind), 0)


def first_line_beyond(blocks: Iterable[bytes], num_names: int) -> tuple[int, str]:
    """The first line with which a file has more than this many names of fields, and its new name; (0, "") if there is none."""
    seen: set[str] = set()
    for number, value in _numbered(blocks):
        for name in value:
            seen.add(name)
            if len(seen) > num_names:
                return number, name
    return 0, ""


def _numbered(blocks: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, with the numbers of their lines."""
    line = 1
    for block in whole_lines(blocks, True, lambda: None):
        for number, text in enumerate(block.split(b"\n"), line):
            value = _parse(text.strip(), number) if text.strip() else ""
            if type(value) is dict:
                yield number, value
        line += block.count(b"\n")


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
    """True if orjson may read an integer as a fraction, as it does beyond 64 bits. The digits of a fraction do not count."""
    zeros = text.translate(DIGITS_TO_ZEROS)
    place = zeros.find(ZEROS)
    while place >= 0:
        if text[place - 1 : place] != b".":
            return True
        run = DIGITS.match(text, place)
        assert run is not None  # it matches the empty string
        place = zeros.find(ZEROS, run.end())
    return False


def _parse(text: bytes, number: int) -> Line:
    """Parses a line; where orjson does not, as the json module does, which knows NaN and integers of any size.

    A byte-order mark at its beginning is that of a file that was appended to another one.
    """
    text = text.removeprefix(BOM)
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
    except RecursionError:
        return f"line {number}: {TOO_DEEP}"
    except ValueError:
        return f"line {number}: is not JSON that can be read"
    return _checked(value, text, number)


def _checked(value: Any, text: bytes, number: int) -> Line:
    """A line's object, or its error."""
    if type(value) is not dict:
        return _not_an_object(value, number)
    if _is_too_deep(text, value):
        return f"line {number}: {TOO_DEEP}"
    repeated = _repeated_key(text) if _num_colons(text) != _num_keys([value]) else None
    return value if repeated is None else f"line {number}: has the key {json.dumps(repeated, ensure_ascii=False)} twice"


def _not_an_object(value: Any, number: int) -> str:
    name = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return f"line {number}: is {name[type(value)] if type(value) in name else 'a number'}, not an object"


@dataclass(frozen=True)
class Settled:
    """The outcome of a first reading, of all lines of a file.

    Attributes:
        fields: the kinds of all fields; more than MOST_COLUMNS if the rest was not read.
        error: that of the first line that cannot be read; "" if all can be.
        is_plain: orjson reads all lines exactly.
    """

    fields: dict[str, Kind]
    error: str
    is_plain: bool


def settle(parsed: Iterable[Lines]) -> Settled:
    """Settles a file's fields."""
    fields: dict[str, Kind] = {}
    error, is_plain = "", True
    for lines in parsed:
        see_objects(fields, lines.plain or [value for value in lines.values if type(value) is dict])
        if not lines.plain:
            is_plain = False
            error = error or next((value for value in lines.values if type(value) is str), "")
        if len(fields) > MOST_COLUMNS:
            break
    return Settled(fields, error, is_plain)


def json_batches(parsed: Iterable[Lines], fields: dict[str, Kind]) -> Iterator[pa.RecordBatch]:
    """The rows as record batches of the settled types, with ROW_TEXT, and with BAD_ROW if a row has an error."""
    settled = settle_columns(fields)
    for lines in parsed:
        if not lines.texts:
            continue
        rows = lines.plain or [value if type(value) is dict else {} for value in lines.values]
        columns = [column.array(rows, lines.texts) for column in settled]
        names = list(fields)
        columns.append(pa.array(lines.texts, pa.large_binary()))
        names.append(ROW_TEXT)
        errors = [] if lines.plain else [value if type(value) is str else None for value in lines.values]
        if any(errors):
            columns.append(pa.array(errors, pa.string()))
            names.append(BAD_ROW)
        yield pa.RecordBatch.from_arrays(columns, names=names)

"""Arrow values as JSON: for the json member of a sample, and for columns that a sidecar can hold only as text.

In: an Arrow array of any type. Out: one value for each of its elements that `json.dumps` writes as valid JSON, in the forms of
docs/decisions/0019-values.md. The sidecar keeps the exact values; JSON has no dates, bytes or non-finite numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def json_values(array: pa.Array) -> list[Any]:
    """The elements in JSON's terms. Text must be valid UTF-8 (`columns.with_valid_text`)."""
    kind = array.type
    convert = next((convert for fits, convert in _CONVERSIONS if fits(kind)), None)
    return [None if value is None else str(value) for value in array.to_pylist()] if convert is None else convert(array)


def is_list(kind: pa.DataType) -> bool:
    """True for every type of list, of variable or fixed size."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in (*tests, pa.types.is_list_view, pa.types.is_large_list_view))


def is_text(kind: pa.DataType) -> bool:
    """True for every type of UTF-8 text, but dictionaries."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """True for every type of bytes, but dictionaries."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_plain(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _plain(array: pa.Array) -> list[Any]:
    return array.to_pylist()


def _floats(array: pa.Array) -> list[Any]:
    """JSON has no NaN and no infinity: they are null."""
    return [value if value is not None and np.isfinite(value) else None for value in array.to_pylist()]


def _decoded(array: pa.Array) -> list[Any]:
    return json_values(array.dictionary_decode())


def _run_ends(array: pa.Array) -> list[Any]:
    return json_values(pc.run_end_decode(array))


def _stored(array: pa.Array) -> list[Any]:
    match array.type.extension_name:
        case "arrow.uuid":
            return [None if value is None else str(value) for value in array.to_pylist()]
        case "arrow.bool8":
            return array.to_pylist()
    return json_values(array.storage)


def _bytes(array: pa.Array) -> list[Any]:
    return [None if value is None else _text_or_base64(value) for value in array.to_pylist()]


def _text_or_base64(value: bytes) -> Any:
    """Text where the bytes are UTF-8; otherwise an object, which cannot be mistaken for text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _lists(array: pa.Array) -> list[Any]:
    """Arrow's own `flatten` lacks extension types below lists that are null."""
    return _cut(array, array.values, json_values)


def _maps(array: pa.Array) -> list[Any]:
    """A list of [key, value] for each map: keys may be of any type, and repeat."""
    entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    return _cut(array, entries, lambda part: [list(pair) for pair in zip(*map(json_values, part.flatten()), strict=True)])


def _cut(array: pa.Array, items: pa.Array, convert: Callable[[pa.Array], list[Any]]) -> list[Any]:
    """The converted items of each list. Items that lie outside of all lists are not converted."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        starts = [(array.offset + number) * size for number in range(len(array))]
        stops = [start + size for start in starts]
    elif pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        starts = array.offsets.to_pylist()
        stops = [start + size for start, size in zip(starts, array.sizes.to_pylist(), strict=True)]
    else:
        *starts, last = array.offsets.to_pylist()
        stops = [*starts[1:], last][: len(starts)]
    first = min(starts, default=0)
    values = convert(items[first : max(stops, default=0)])
    spans = zip(array.is_valid().to_pylist(), starts, stops, strict=True)
    return [values[start - first : stop - first] if valid else None for valid, start, stop in spans]


def _structs(array: pa.Array) -> list[Any]:
    """An object for each struct; a list of [name, value] where two fields have one name."""
    names = [field.name for field in array.type]
    rows = list(zip(*(json_values(column) for column in array.flatten()), strict=True)) if names else [()] * len(array)
    pairs = [list(zip(names, row, strict=True)) for row in rows]
    values = [dict(row) for row in pairs] if len(set(names)) == len(names) else [[list(pair) for pair in row] for row in pairs]
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def _as_python_writes(array: pa.Array, exactly: Callable[[int], str]) -> list[Any]:
    """Python's text for dates and times; `exactly` gives that of a count that Python's types cannot hold."""
    try:
        return [None if value is None else str(value) for value in array.to_pylist()]
    except (OverflowError, ValueError):
        pass
    counts = array.view(pa.int64() if array.type.bit_width == 64 else pa.int32()).to_pylist()
    found: list[Any] = []
    for number, count in enumerate(counts):
        try:
            found.append(None if count is None else str(array[number].as_py()))
        except (OverflowError, ValueError):
            found.append(exactly(count))
    return found


def _dates(array: pa.Array) -> list[Any]:
    unit: Any = "D" if pa.types.is_date32(array.type) else "ms"
    return _as_python_writes(array, lambda count: str(np.datetime64(count, unit).astype("datetime64[D]")))


def _timestamps(array: pa.Array) -> list[Any]:
    unit, zone = array.type.unit, array.type.tz
    if zone is not None:
        try:
            pa.scalar(0, array.type).as_py()
        except (ValueError, LookupError, OSError):  # a zone that this machine does not know: the instant stays exact
            array = array.cast(pa.timestamp(unit, "UTC"))
    suffix = "" if zone is None else "+00:00"
    return _as_python_writes(array, lambda count: str(np.datetime64(count, unit)).replace("T", " ") + suffix)


def _durations(array: pa.Array) -> list[Any]:
    return _as_python_writes(array, lambda count: f"{count} {array.type.unit}")


def _times(array: pa.Array) -> list[Any]:
    """Python's text; digits beyond microseconds, which Python's type drops, and counts beyond a day are kept."""
    unit = array.type.unit
    found = array.view(pa.int64() if array.type.bit_width == 64 else pa.int32()).to_pylist()
    return [None if count is None else _time(count, unit, _DAY[unit]) for count in found]


def _time(count: int, unit: str, day: int) -> str:
    if not 0 <= count < day:
        return f"{count} {unit}"
    seconds, rest = divmod(count, day // 86_400)
    nanoseconds = rest * (86_400_000_000_000 // day)
    digits = f".{nanoseconds:09d}" if nanoseconds % 1000 else f".{nanoseconds // 1000:06d}" if nanoseconds else ""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{digits}"


def _is_extension(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


_CONVERSIONS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (_is_extension, _stored),
    (_is_plain, _plain),
    (pa.types.is_floating, _floats),
    (pa.types.is_dictionary, _decoded),
    (pa.types.is_run_end_encoded, _run_ends),
    (is_bytes, _bytes),
    (is_list, _lists),
    (pa.types.is_map, _maps),
    (pa.types.is_struct, _structs),
    (pa.types.is_date, _dates),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_duration, _durations),
    (pa.types.is_time, _times),
)
"""(test of a type, conversion of its arrays); decimals and the rest are written as text."""

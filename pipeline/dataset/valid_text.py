"""Text that is not UTF-8: parquet files hold it, and neither Python nor JSON nor another reader of a sidecar can.

In: an Arrow array of any type. Out: the same with U+FFFD in the place of such bytes, and the number of texts that had some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pipeline.dataset.json_values import is_list, is_text, json_values


def with_valid_text(array: pa.Array) -> tuple[pa.Array, int]:
    """The array with U+FFFD in the place of bytes that are not UTF-8, at any depth; and the number of texts that had some."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:  # of text, or of a value that its type does not allow, which stays
        return _replaced(array)
    return array, 0


def _replaced(array: pa.Array) -> tuple[pa.Array, int]:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        storage, count = _replaced(array.storage)
        return pa.ExtensionArray.from_storage(kind, storage), count
    if is_text(kind):
        return _replaced_texts(array)
    if pa.types.is_dictionary(kind):
        dictionary, count = _replaced(array.dictionary)
        return pa.DictionaryArray.from_arrays(array.indices, dictionary, ordered=kind.ordered), count
    if pa.types.is_struct(kind):
        columns = [_replaced(column) for column in array.flatten()]
        arrays, counts = [column for column, _ in columns], [count for _, count in columns]
        return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=array.is_null()), sum(counts)
    if is_list(kind) or pa.types.is_map(kind):
        return _replaced_lists(pa.concat_arrays([array, array[:0]]))  # a copy whose offsets begin at 0
    return array, 0


def _replaced_texts(array: pa.Array) -> tuple[pa.Array, int]:
    values, count = [], 0
    for value in array.cast(pa.large_binary()).to_pylist():
        text = None if value is None else value.decode("utf-8", "replace")
        count += text is not None and text.encode() != value
        values.append(text)
    return pa.array(values, array.type), count


def _replaced_lists(array: pa.Array) -> tuple[pa.Array, int]:
    kind, mask = array.type, array.is_null()
    if pa.types.is_map(kind):
        (keys, in_keys), (items, in_items) = _replaced(array.keys), _replaced(array.items)
        return pa.MapArray.from_arrays(array.offsets, keys, items, type=kind, mask=mask), in_keys + in_items
    values, count = _replaced(array.values)
    build: Callable[..., pa.Array] = type(array).from_arrays
    if pa.types.is_fixed_size_list(kind):
        return build(values, type=kind, mask=mask), count
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return build(array.offsets, array.sizes, values, type=kind, mask=mask), count
    return build(array.offsets, values, type=kind, mask=mask), count


def exact_values(column: pa.ChunkedArray) -> list[Any]:
    """The values as Python objects, for hashes; in JSON's terms where Python has no object for one of them."""
    try:
        return column.to_pylist()
    except (ArithmeticError, ValueError, LookupError):  # UnicodeDecodeError is a ValueError
        return [value for chunk in column.chunks for value in json_values(with_valid_text(chunk)[0])]


def has_unknown_zone(kind: pa.DataType) -> bool:
    """True for timestamps of a time zone that Arrow cannot find, so that it cannot write them as text."""
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        return False
    try:
        pa.array([0], pa.int64()).view(kind).cast(pa.string())
    except pa.ArrowInvalid:
        return True
    return False

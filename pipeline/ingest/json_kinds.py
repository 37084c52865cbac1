"""Settles one type for each field of JSON lines, over the whole file, and makes columns of that type.

In: the objects of a file, some at a time. Out: the kinds of values in each field, then Arrow arrays. A field whose values share
no type is text: strings and numbers as they are written, anything else as JSON.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

import orjson
import pyarrow as pa

EXACT_IN_DOUBLE = 1 << 53
MANY_FIELDS = 500
"""An object with more fields than this, nested ones included, is a mapping rather than a record, and is kept as JSON text."""
MANY_LEVELS = 20
"""A value with more objects or lists within each other than this is kept as JSON text: parquet holds about 30."""
WORDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


@dataclass
class Kind:
    """The kinds of values that a field has held so far.

    Attributes:
        types: Python's types of the values, without null.
        fields: kinds of an object's fields.
        element: kind of a list's elements.
        of_captions: fractions are text, so that 5 beside 2.50 stays "5", and 2.50 "2.50".
        level: number of objects and lists around a value.
    """

    types: set[type] = field(default_factory=set)
    lowest: int = 0
    highest: int = 0
    fields: dict[str, Kind] = field(default_factory=dict)
    element: Kind | None = None
    of_captions: bool = False
    level: int = 0

    def see(self, values: Sequence[Any]) -> None:
        """Takes more values of the field into account."""
        types = set(map(type, values))
        is_plain = types == {int}
        types.discard(type(None))
        self.types |= types
        if int in types:
            numbers = values if is_plain else [value for value in values if type(value) is int]
            self.lowest, self.highest = min(self.lowest, min(numbers)), max(self.highest, max(numbers))
        if self.level > MANY_LEVELS:
            return
        if list in types:
            self.element = self.element or Kind(level=self.level + 1)
            self.element.see(list(chain.from_iterable(value for value in values if type(value) is list)))
        if dict in types and len(self.fields) <= MANY_FIELDS:
            see_objects(self.fields, [value for value in values if type(value) is dict], self.level + 1)

    def settled_type(self) -> pa.DataType | None:
        """The Arrow type that holds every value exactly; None if there is none but text."""
        if not self.types:
            return pa.null()
        if self.types == {int}:
            return self._integer_type()
        if self.of_captions and float in self.types:
            return None
        if self.types == {int, float}:
            return pa.float64() if self.lowest >= -EXACT_IN_DOUBLE and self.highest <= EXACT_IN_DOUBLE else None
        if len(self.types) > 1 or (self.level > MANY_LEVELS and self.types & {list, dict}):
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


def see_objects(fields: dict[str, Kind], objects: Sequence[dict[str, Any]], level: int = 0) -> None:
    """Takes the objects' values into account; new fields are added in the order of their appearance.

    Args:
        level: number of objects and lists around the fields' values, the outermost object excepted.
    """
    for name, values in _by_name(objects).items():
        if name not in fields:
            fields[name] = Kind(level=level)
        fields[name].see(values)


def _by_name(objects: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of each name. The time grows with their number, also if each object has other names."""
    first = objects[0] if objects else {}
    if sum(map(len, objects)) == len(first) * len(objects):
        try:  # objects that have all names of the first have no others: there are as many
            return {name: list(map(itemgetter(name), objects)) for name in first}
        except KeyError:
            pass
    found = defaultdict[str, list[Any]](list)
    for one in objects:
        for name, value in one.items():
            found[name].append(value)
    return found


def settle_columns(fields: dict[str, Kind]) -> list[Column]:
    """The columns of a file whose values have all been seen."""
    return [Column(name, kind.settled_type(), not kind.types & {list, dict}) for name, kind in fields.items()]


@dataclass(frozen=True)
class Column:
    """A settled column.

    Attributes:
        kind: its type; None: text.
        is_scalar: no value is a list or an object, so that strings are text as they are, and not JSON.
    """

    name: str
    kind: pa.DataType | None
    is_scalar: bool

    def array(self, rows: Sequence[dict[str, Any]], texts: Sequence[bytes]) -> pa.Array:
        """The column's part in some rows.

        Args:
            texts: the rows as they are written.
        """
        try:
            values = list(map(itemgetter(self.name), rows))
        except KeyError:
            values = [row.get(self.name) for row in rows]
        if self.kind is not None:
            return pa.array(values, self.kind)
        return pa.array([self._text(value, text) for value, text in zip(values, texts, strict=True)], pa.string())

    def _text(self, value: Any, text: bytes) -> str | None:
        """A value as text; None for null and for NaN, which is null in other words."""
        if self.is_scalar and type(value) is str:
            return value
        if value is None or value != value:
            return None
        written = value
        if _may_have_other_digits(value):
            written = json.loads(text, strict=False, parse_float=orjson.Fragment, parse_int=orjson.Fragment)[self.name]
        if written in (math.inf, -math.inf):
            return str(written)
        return orjson.dumps(written).decode()


def _may_have_other_digits(value: Any) -> bool:
    """True if a number in a value may be written in another way than Python would write it: 1e5, 1.10, -0."""
    if type(value) is dict:
        return any(map(_may_have_other_digits, value.values()))
    if type(value) is list:
        return any(map(_may_have_other_digits, value))
    return type(value) is float or (type(value) is int and (not value or not -(1 << 63) <= value < 1 << 64))

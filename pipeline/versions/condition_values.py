"""Values in conditions of `curate.where`: columns of a sidecar as pandas holds them exactly, and their comparison by kind.

In: Arrow columns, or what a condition has made of them, and constants. Out: true or false for each row. Every comparison of a
condition is made by `compared`: both sides are of one kind, or it is refused. pandas would call them unequal in silence.
"""

from __future__ import annotations

import datetime
import operator
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.dataset.columns import captions_of
from pipeline.dataset.json_values import is_bytes, is_list, is_text, json_values

NUMBERS, TEXT, BOOLEANS, LISTS, NULLS = "numbers", "text", "true or false", "lists", "nulls"
TIMES, DURATIONS, TIMES_OF_DAY, BYTES, OTHER = "dates", "durations", "times of day", "bytes", "other values"
_KINDS = {
    **dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), NUMBERS),
    **dict.fromkeys(("datetime64", "datetime", "date"), TIMES),
    **dict.fromkeys(("timedelta64", "timedelta"), DURATIONS),
    **{"string": TEXT, "boolean": BOOLEANS, "time": TIMES_OF_DAY, "bytes": BYTES, "empty": NULLS},
}
"""Kinds by pandas' names of them."""
_PARSERS: dict[str, Callable[[str], Any]] = {
    TIMES: pd.Timestamp,
    DURATIONS: pd.Timedelta,
    TIMES_OF_DAY: datetime.time.fromisoformat,
}
"""Kinds that are written as text in a condition."""
EQUALITIES = (operator.eq, operator.ne)
MIRRORED = {operator.lt: operator.gt, operator.gt: operator.lt, operator.le: operator.ge, operator.ge: operator.le}
LIMIT = 2.0**62
"""Sums, differences and products of at most this size, as floats, are within 64 bits."""
Comparison = Callable[[Any, Any], Any]


class ConditionError(ValueError):
    """A condition asks for something that these values do not allow; the message says so without the place."""


# ------------------------------------------------------------------------------------------------------------ columns


def to_frame(table: pa.Table, missing: Iterable[str] = ()) -> pd.DataFrame:
    """A frame of columns whose values pandas can hold exactly; the others are skipped.

    Args:
        missing: columns to add, with null in each row.
    """
    columns: dict[str, pd.Series] = {}
    for name in table.column_names:
        try:
            columns[name] = _series(table[name])
        except (pa.ArrowException, ValueError, OverflowError, LookupError, OSError):
            continue
    frame = pd.DataFrame(columns, index=range(table.num_rows))
    for name in missing:
        frame[name] = pd.Series(None, index=frame.index, dtype=object)
    return frame


def _series(column: pa.ChunkedArray) -> pd.Series:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _series(column.cast(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):  # UUIDs as text, as everywhere
        values = [value for chunk in column.chunks for value in json_values(chunk)]
        return pd.Series(values, dtype="boolean" if kind.extension_name == "arrow.bool8" else object)
    if pa.types.is_decimal(kind):
        return pd.Series([Decimal("NaN") if value is None else value for value in column.to_pylist()], dtype=object)
    if is_bytes(kind):
        return _text_or_bytes(column)
    if pa.types.is_boolean(kind):
        return column.to_pandas(types_mapper={kind: pd.BooleanDtype()}.get)
    if pa.types.is_integer(kind):
        try:  # small types would overflow when they are multiplied, and pandas' numbers beside nulls would be rounded
            return column.cast(pa.int64()).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        except pa.ArrowInvalid:
            return pd.Series([pd.NA if value is None else value for value in column.to_pylist()], dtype=object)
    return column.to_pandas(date_as_object=False)


def _text_or_bytes(column: pa.ChunkedArray) -> pd.Series:
    """Bytes as text where all of them are UTF-8, as captions are."""
    values = column.to_pylist()
    try:
        return pd.Series([None if value is None else value.decode() for value in values], dtype=object)
    except UnicodeDecodeError:
        return pd.Series(values, dtype=object)


def first_captions(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The captions as text: the first where a row has several."""
    if is_text(column.type):
        return column
    assert is_list(column.type)
    return pa.chunked_array([pa.array([texts[0] if texts else None for texts in captions_of(column)], pa.string())])


# -------------------------------------------------------------------------------------------------------- comparisons


def kind_of(value: object) -> str:
    """The kind of a constant, or of a column's values that are not null."""
    if not isinstance(value, pd.Series):
        return NULLS if value is None else _kind([value])
    if value.isna().all():
        return NULLS
    return _kind(value)


def _kind(values: Any) -> str:
    found = pd.api.types.infer_dtype(values, skipna=True)
    if found == "mixed" and all(isinstance(value, np.ndarray) for value in values if value is not None):
        return LISTS
    return _KINDS[found] if found in _KINDS else OTHER


def true_where(value: Any, name: str) -> Any:
    """A part of a condition as true or false; null is false. Raises ConditionError if it is something else."""
    if kind_of(value) not in (BOOLEANS, NULLS) or value is None:
        raise ConditionError(f"{name} is not true or false for each sample; write a comparison")
    return compared(operator.eq, value, True, (name, "True"))


def compared(operation: Comparison, one: Any, other: Any, names: tuple[str, str]) -> Any:
    """Compares values, row by row, by an operator of Python; null equals nothing, and is neither less nor more.

    Args:
        names: what the condition calls both sides.

    Raises:
        ConditionError: they are not of one kind.
    """
    if not isinstance(one, pd.Series):
        if not isinstance(other, pd.Series):
            return operation(one, other)
        mirrored = MIRRORED[operation] if operation in MIRRORED else operation
        return compared(mirrored, other, one, (names[1], names[0]))
    if isinstance(other, list):
        return _compared_with_list(operation, one, other, names[0])
    if other is None:
        raise ConditionError(f"compares {names[0]} with None, which nothing equals; write {names[0]}.isnull() or .notnull()")
    kinds = (kind_of(one), kind_of(other))
    if kinds[0] == LISTS and not isinstance(other, pd.Series) and operation in EQUALITIES:
        return compared(operation, _only_values(one), other, names)
    if NULLS in kinds:
        return pd.Series(operation is operator.ne, index=one.index)
    if kinds[0] in _PARSERS and isinstance(other, str):
        other = _parsed(kinds[0], one, other, names)
    elif (kinds[0] != kinds[1] and {*kinds} != {NUMBERS, BOOLEANS}) or kinds[0] in (LISTS, OTHER):
        what = names[1] if isinstance(other, pd.Series) else repr(other)
        raise ConditionError(f"compares {names[0]} ({kinds[0]}) with {what} ({kinds[1]}){_remedy(one, kinds, names)}")
    if kinds[0] == TIMES and _has_zone(one) != _has_zone(other):
        raise ConditionError(f"compares {names[0]} with {names[1]}, of which only one has a time zone")
    answer = operation(*alike(one, other))
    return answer.fillna(operation is operator.ne).astype(bool)


def _compared_with_list(operation: Comparison, one: pd.Series, others: list[Any], name: str) -> Any:
    if operation not in EQUALITIES:
        raise ConditionError(f"orders {name} and a list; compare it with one value")
    if kind_of(one) == TEXT and all(isinstance(other, str) for other in others):
        found = one.isin(others)
    else:
        each = [compared(operator.eq, one, other, (name, repr(other))) for other in others]
        found = reduce(operator.or_, each, pd.Series(False, index=one.index))
    return found if operation is operator.eq else ~found


def contained(one: Any, column: Any, names: tuple[str, str]) -> pd.Series:
    """For each row whether a constant is one of the values in its list. Raises ConditionError if there are no lists."""
    kind = kind_of(column)
    if isinstance(one, pd.Series) or not isinstance(column, pd.Series) or kind not in (LISTS, NULLS):
        is_part = kind == TEXT and isinstance(column, pd.Series) and isinstance(one, str)
        remedy = f"{names[1]}.str.contains({names[0]}, regex=False)" if is_part else "a list of values at the right side"
        raise ConditionError(f"{names[0]} in {names[1]}: {names[1]} holds no lists; write {remedy}")
    values = column.explode()
    kinds = {kind_of(one), kind_of(values)}
    if len(kinds - {NULLS}) > 1:
        raise ConditionError(f"{names[0]} in {names[1]}: the lists there hold {kind_of(values)}")
    return compared(operator.eq, values, one, (names[1], names[0])).groupby(level=0).any()


def alike(one: pd.Series, other: Any) -> tuple[Any, Any]:
    """Both sides of a comparison or calculation in types that pandas treats exactly: decimals meet numbers as written."""
    sides, has_decimals = [one, other], [_has_decimals(one), _has_decimals(other)]
    for side, value in enumerate(sides):
        if not has_decimals[1 - side] or has_decimals[side]:
            continue
        if isinstance(value, float):
            sides[side] = Decimal(repr(value))
        elif isinstance(value, pd.Series) and pd.api.types.is_float_dtype(value):
            sides[1 - side] = sides[1 - side].astype("float64")
    if any(isinstance(value, pd.Series) and value.dtype == object for value in sides):
        sides = [value.astype(object) if isinstance(value, pd.Series) else value for value in sides]
    return sides[0], sides[1]


def calculated(operation: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """The result of an operator of arithmetic; integers that leave 64 bits become Python's, which have no limit."""
    answer = operation(one, other)
    if not isinstance(answer, pd.Series) or not pd.api.types.is_integer_dtype(answer):
        return answer
    floats = [value.astype("float64") if isinstance(value, pd.Series) else float(value) for value in (one, other)]
    if not (operation(*floats).abs() >= LIMIT).any():
        return answer
    return operation(*(value.astype(object) if isinstance(value, pd.Series) else value for value in (one, other)))


def _has_decimals(value: Any) -> bool:
    is_column = isinstance(value, pd.Series) and value.dtype == object
    return bool(pd.api.types.infer_dtype(value, skipna=True) == "decimal") if is_column else isinstance(value, Decimal)


def _only_values(column: pd.Series) -> pd.Series:
    """Lists of one value as that value, which text is among lists; others equal nothing."""
    cells = [cell[0] if isinstance(cell, np.ndarray) and len(cell) == 1 else None for cell in column]
    return pd.Series(cells, index=column.index, dtype=object)


def _has_zone(times: Any) -> bool:
    return isinstance(times.dtype, pd.DatetimeTZDtype) if isinstance(times, pd.Series) else times.tzinfo is not None


def _parsed(kind: str, column: pd.Series, text: str, names: tuple[str, str]) -> Any:
    """A date, duration or time that a condition has as text; a date without a zone is one in the column's."""
    try:
        value = _PARSERS[kind](text)
    except ValueError:
        raise ConditionError(f"compares {names[0]} ({kind}) with {text!r}, which is not one of them") from None
    return value.tz_localize(column.dt.tz) if kind == TIMES and _has_zone(column) and value.tzinfo is None else value


# ------------------------------------------------------------------------------------------------------------ remedies


def _remedy(column: pd.Series, kinds: Sequence[str], names: tuple[str, str]) -> str:
    """A way to compare a column, in brackets."""
    name, (own, other) = names[0], kinds
    remedies = {
        (NUMBERS, TEXT): f"numbers there; convert it, as in {name}.astype('float64'), and compare numbers",
        (BOOLEANS, TEXT): f"compare with True or False, or its text, as in {name}.astype('str') == 'True'",
        (TIMES, NUMBERS): f"compare with a date in quotes, or with a part of it, as in {name}.dt.year == 2026",
    }
    if own == TEXT:
        remedy = text_remedy(column, name) if other == NUMBERS else "text there; compare texts"
    elif own == BYTES:
        remedy = "bytes there that are no UTF-8, which a condition cannot compare"
    elif own == LISTS:
        remedy = f"lists there; compare one of their values, as in {name}.str[0] == 'en'"
    else:
        remedy = remedies.get((own, other), f"compare texts, as in {name}.astype('str') == 'a'")
    return f" ({name}: {remedy})"


def text_remedy(column: pd.Series, name: str) -> str:
    """A way to compare a column of text with numbers; empty if it holds no text."""
    texts = [value for value in column if isinstance(value, str)]
    if not texts:
        return ""
    for conversion in ("", ".str.strip('\"')"):  # indexes of earlier releases hold text among numbers with its quotes
        if all(_is_number(text.strip('"') if conversion else text) for text in texts):
            return f"text there; convert it, as in {name}{conversion}.astype('float64')"
    other = next(text for text in texts if not _is_number(text.strip('"')))
    return f"text there, such as {other[:40]!r}, not numbers; compare texts, as in {name}.astype('str') == '7'"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Conditions of `curate.where` on sidecars: a data set's shards may come from tables with other columns and other types.

In: a condition in the syntax of pandas, and a shard's sidecar. Out: true or false for each row. Only the columns that the
condition names are converted, and their values stay exact. A column that this shard lacks, and another has, is null here.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.columns import captions_of
from pipeline.dataset.json_values import is_list, is_text
from pipeline.dataset.manifest import ShardRecord
from pipeline.errors import InputError
from pipeline.storage.base import Storage

READ_BYTES = 1 << 16
EXACT_IN_FLOAT = 1 << 53
"""Integers below this size are exact as float64, which pandas uses for integers beside nulls."""

Kind = tuple[tuple[str, str], ...]
"""Names and types of the columns that a condition may name."""


def named_columns(names: Iterable[str], condition: str) -> list[str]:
    """The columns that a condition may name."""
    return [name for name in names if name and name in condition]


def kinds_of_shards(storage: Storage, shards: Sequence[ShardRecord], condition: str) -> dict[Kind, ShardRecord]:
    """One shard for each combination of columns and types that the condition meets, by that combination."""

    def named(shard: ShardRecord) -> Kind:
        with storage.open(shard.sidecar_path, READ_BYTES) as file:
            schema = pq.read_schema(file)
        return tuple((name, str(schema.field(name).type)) for name in named_columns(schema.names, condition))

    kinds: dict[Kind, ShardRecord] = {}
    with ThreadPoolExecutor(16) as readers:
        for shard, kind in zip(shards, readers.map(named, shards), strict=True):
            kinds.setdefault(kind, shard)
    return kinds


def holds(frame: pd.DataFrame, condition: str, place: str, names: Sequence[str]) -> pd.Series:
    """Evaluates a condition for each row.

    Args:
        place: the sidecar's address, for the message.
        names: all columns that a condition may use, for the message.

    Raises:
        InputError: it cannot be evaluated on these columns, or is not true or false.
    """
    comparisons, used_otherwise = _comparisons(condition)
    for name, value in comparisons:
        if name in frame and isinstance(value, str) and frame[name].map(type).eq(np.ndarray).any():
            if name in used_otherwise:
                raise InputError(
                    f"curate.where={condition}: compares {name} with {value!r} in {place}, where it holds lists; compare "
                    f"one of their values, as in {name}.str[0] == {value!r}"
                )
            frame = frame.assign(**{name: _one_or_list(frame[name])})
        if name in frame and _never_equals(frame[name], value):
            hint = _hint(frame[name]) or f"numbers there; convert it, as in {name}.astype('float64'), and compare numbers"
            raise InputError(
                f"curate.where={condition}: compares {name} with {value!r} in {place}, which none of its values can equal "
                f"({name}: {hint})"
            )
    try:
        answer = frame.eval(condition, engine="python")
    except Exception as error:  # pandas raises many kinds of errors for conditions that it cannot parse
        texts = {name: _hint(frame[name]) for name in named_columns(frame.columns, condition)}
        hints = [f"{name}: {hint}" for name, hint in texts.items() if hint]
        hint = f" ({'; '.join(hints)})" if hints else ""
        raise InputError(
            f"curate.where={condition}: {error} in {place}{hint}; write a condition on the columns {', '.join(names)}"
        ) from None
    if not isinstance(answer, pd.Series) or answer.dtype != bool:
        raise InputError(f"curate.where={condition}: is not true or false for each sample; write a comparison")
    return answer


def _comparisons(condition: str) -> tuple[list[tuple[str, str | float]], set[str]]:
    """Pairs (column, value) that are compared by ==, != or `in` with a text or number, and the columns used otherwise."""
    quoted = dict[str, str]()

    def plain(found: re.Match[str]) -> str:
        return quoted.setdefault(found[1], f"_quoted_{len(quoted)}")

    text = re.sub("`([^`]*)`", plain, condition).replace("&", " and ").replace("|", " or ")
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except SyntaxError:  # pandas says it
        return [], set()
    real = {name: column for column, name in quoted.items()}
    pairs, counted = list[tuple[str, str | float]](), Counter[str]()
    for node in nodes:
        if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
            continue
        for one, other in ((node.left, node.comparators[0]), (node.comparators[0], node.left)):
            constants = other.elts if isinstance(other, ast.List | ast.Tuple) else [other]
            values = [each.value for each in constants if isinstance(each, ast.Constant)]
            if isinstance(one, ast.Name) and values:
                counted[one.id] += 1
                pairs += [(real.get(one.id, one.id), value) for value in values if isinstance(value, str | int | float)]
    used = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    return pairs, {real.get(name, name) for name in used - counted}


def _one_or_list(column: pd.Series) -> pd.Series:
    """Lists of one value as that value, which text is among lists; pandas compares arrays of several in odd ways."""
    cells = [tuple(cell) if isinstance(cell, np.ndarray) else cell for cell in column]
    cells = [cell[0] if isinstance(cell, tuple) and len(cell) == 1 else cell for cell in cells]
    return pd.Series(cells, index=column.index, dtype=object)


def _never_equals(column: pd.Series, value: str | float) -> bool:
    """True if a column of text is compared with a number, or one of numbers with a text that is a number."""
    values = column.dropna()
    if not isinstance(value, str):
        return len(values) > 0 and bool(values.map(type).eq(str).all())
    return len(values) > 0 and pd.api.types.is_numeric_dtype(column) and _is_number(value)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def _hint(column: pd.Series) -> str:
    """A way to compare a column of text with numbers; empty if it holds no text."""
    texts = [value for value in column if isinstance(value, str)]
    if not texts:
        return ""
    for conversion in ("", ".str.strip('\"')"):  # indexes of earlier releases hold text among numbers with its quotes
        if all(_is_number(text.strip('"') if conversion else text) for text in texts):
            return f"text there; convert it, as in {column.name}{conversion}.astype('float64')"
    other = next(text for text in texts if not _is_number(text.strip('"')))
    return f"text there, such as {other[:40]!r}, not numbers; compare texts, as in {column.name}.astype('str') == '7'"


def to_frame(table: pa.Table, missing: Iterable[str] = ()) -> pd.DataFrame:
    """A frame of columns whose values pandas can hold exactly; the others are skipped.

    Args:
        missing: columns to add, with null in each row.
    """
    columns: dict[str, pd.Series] = {}
    for name in table.column_names:
        try:
            columns[name] = _series(table[name])
        except (pa.ArrowException, ValueError, OverflowError, LookupError):
            continue
    frame = pd.DataFrame(columns, index=range(table.num_rows))
    for name in missing:
        frame[name] = np.nan
    return frame


def _series(column: pa.ChunkedArray) -> pd.Series:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _series(column.cast(kind.value_type))
    if pa.types.is_decimal(kind) or (pa.types.is_integer(kind) and column.null_count and _is_large(column)):
        values = [np.nan if value is None else value for value in column.to_pylist()]
        return pd.Series(values, dtype=object)
    return column.to_pandas(date_as_object=False)


def _is_large(column: pa.ChunkedArray) -> bool:
    ends = pc.min_max(column)
    return any(end is not None and abs(end) >= EXACT_IN_FLOAT for end in ends.as_py().values())


def first_captions(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The captions as text: the first where a row has several."""
    if is_text(column.type):
        return column
    assert is_list(column.type)
    return pa.chunked_array([pa.array([texts[0] if texts else None for texts in captions_of(column)], pa.string())])

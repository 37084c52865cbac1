"""Conditions of `curate.where` on sidecars: a data set's shards may come from tables with other columns and other types.

In: a condition in the syntax of pandas, and a shard's sidecar. Out: true or false for each row. Only the columns that the
condition names are converted, and their values stay exact. A column that this shard lacks, and another has, is null here.
"""

from __future__ import annotations

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
    try:
        answer = frame.eval(condition, engine="python")
    except Exception as error:  # pandas raises many kinds of errors for conditions that it cannot parse
        texts = [name for name in named_columns(frame.columns, condition) if frame[name].map(type).eq(str).any()]
        hint = f" ({', '.join(texts)}: text there; convert it, as in {texts[0]}.astype('float64'))" if texts else ""
        raise InputError(
            f"curate.where={condition}: {error} in {place}{hint}; write a condition on the columns {', '.join(names)}"
        ) from None
    if not isinstance(answer, pd.Series) or answer.dtype != bool:
        raise InputError(f"curate.where={condition}: is not true or false for each sample; write a comparison")
    return answer


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

"""The input's other columns on their way into sidecars, as Arrow arrays that keep type and value.

In: batches of a table. Out: their columns under names that are no sidecar column's, joined into one table for each shard. What
has no common type, or cannot be stored in parquet, becomes text, and that is logged (docs/decisions/0019-values.md).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.json_values import is_list, is_text, json_values

logger = logging.getLogger(__name__)
COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("original_sha256", pa.string()),
        ("jpg_offset", pa.int64()),
        ("jpg_size", pa.int64()),
        ("txt_offset", pa.int64()),
        ("txt_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
    ]
)
"""Sidecar columns (docs/decisions/0001-manifest.md), in the file's order; the input's other columns follow."""
PREFIX = "source_"


def free_names(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """Names under which columns are stored: their own, or source_NAME, source_NAME_2, ... where NAME is taken.

    A column whose name is free always keeps it, so that the others get out of its way.
    """
    used = set(taken) | set(names)
    found = []
    for name in names:
        if name in taken:
            wanted, number = f"{PREFIX}{name}", 2
            while wanted in used:
                wanted, number = f"{PREFIX}{name}_{number}", number + 1
            used.add(wanted)
            name = wanted
        found.append(name)
    return found


class Extra:
    """Columns of consecutive input rows that go through as they came, under names that are no sidecar column's."""

    def __init__(self, columns: pa.RecordBatch) -> None:
        self.columns = columns.rename_columns(free_names(columns.schema.names, COLUMNS.names))

    def row(self, index: int) -> ExtraRow:
        return ExtraRow(self, index)

    @cached_property
    def _json(self) -> dict[str, list[Any]]:
        return {name: json_values(self.columns.column(name)) for name in self.columns.schema.names}

    def json_record(self, index: int) -> dict[str, Any]:
        """A row's values in JSON's terms."""
        return {name: values[index] for name, values in self._json.items()}


@dataclass(frozen=True)
class ExtraRow:
    """One row of `Extra`."""

    extra: Extra
    index: int

    def json_record(self) -> dict[str, Any]:
        return self.extra.json_record(self.index)


def split_columns(sidecar: pa.Table) -> Iterator[tuple[dict[str, Any], ExtraRow]]:
    """Yields each row of a sidecar as (its own columns, the others)."""
    fixed = [name for name in COLUMNS.names if name in sidecar.column_names]
    for batch in sidecar.to_batches():
        extra = Extra(batch.select([name for name in batch.schema.names if name not in fixed]))
        for index, record in enumerate(batch.select(fixed).to_pylist()):
            yield record, extra.row(index)


class ExtraRows:
    """Collects rows of `Extra` in order, as slices of their batches: no value becomes a Python object."""

    def __init__(self) -> None:
        self._runs: list[tuple[pa.RecordBatch | None, int, int]] = []

    def add(self, row: ExtraRow | None) -> None:
        """Adds a row; None: all its columns are null."""
        columns, index = (None, 0) if row is None else (row.extra.columns, row.index)
        if self._runs:
            last, start, stop = self._runs[-1]
            if last is columns and (columns is None or stop == index):
                self._runs[-1] = (last, start, stop + 1)
                return
        self._runs.append((columns, index, index + 1))

    def table(self) -> pa.Table:
        """The rows' columns, in the order in which they first appear."""
        fields: dict[str, pa.Field] = {}
        for columns, _, _ in self._runs:
            for field in () if columns is None else columns.schema:
                fields.setdefault(field.name, field)
        joined = {name: join_columns(name, [_chunk(name, *run) for run in self._runs]) for name in fields}
        metadata = {name: field.metadata if joined[name].type == field.type else None for name, field in fields.items()}
        schema = [pa.field(name, column.type, metadata=metadata[name]) for name, column in joined.items()]
        return pa.table(list(joined.values()), pa.schema(schema))


def _chunk(name: str, columns: pa.RecordBatch | None, start: int, stop: int) -> pa.Array:
    if columns is None or name not in columns.schema.names:
        return pa.nulls(stop - start)
    return columns.column(name).slice(start, stop - start)


def join_columns(name: str, chunks: Sequence[pa.Array]) -> pa.ChunkedArray:
    """One column of chunks whose types may differ: of a type that holds each value exactly, otherwise of text."""
    types = list(dict.fromkeys(chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)))
    try:
        kind = types[0] if len(types) == 1 else reduce(_common_type, types) if types else pa.null()
        column = pa.chunked_array([_cast(chunk, kind) for chunk in chunks], kind)
        return _in_one_dictionary(column) if pa.types.is_dictionary(kind) else _compact(column)
    except (pa.ArrowException, TypeError):
        lists = [kind for kind in types if _is_list_of_text(kind)]
        if lists and all(kind in lists or not pa.types.is_nested(_unencoded(kind)) for kind in types):
            chunks = [chunk if chunk.type in lists else as_text(chunk) for chunk in chunks]  # as an index does within a tar
            kind = pa.list_(pa.large_string())
            return pa.chunked_array([_cast(chunk, kind) for chunk in chunks], kind)
        _say_that_it_is_text(name, f"its values have no common type: {', '.join(map(str, types))}")
        return pa.chunked_array([as_text(chunk) for chunk in chunks], pa.large_string())


@cache  # a run writes many shards
def _say_that_it_is_text(name: str, reason: str) -> None:
    logger.warning("column %s: is stored as text, since %s", name, reason)


def _compact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in as few chunks as possible, so that a sidecar's bytes do not depend on how the table was cut."""
    try:
        return pa.table([column], ["x"]).combine_chunks().column(0)
    except pa.ArrowNotImplementedError:  # a type that Arrow cannot concatenate
        return column


def _in_one_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with one dictionary, whose indices are wide enough: a file with narrower ones cannot be read."""
    kind = column.type
    try:
        return _compact(column)
    except pa.ArrowInvalid:
        wide = pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
        chunks = [
            pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary, ordered=kind.ordered)
            for chunk in column.chunks
        ]
        return _compact(pa.chunked_array(chunks, wide))


def take_rows(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Some rows of a table, ascending, whatever its types: Arrow's own selection lacks views of text, as polars writes them."""
    try:
        return table.take(rows)
    except pa.ArrowNotImplementedError:
        return pa.concat_tables([table.slice(0, 0), *(table.slice(row, 1) for row in rows.to_pylist())])


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The smallest type that may hold the values of both. Raises ArrowTypeError or ArrowInvalid if there is none."""
    one, other = _unencoded(one), _unencoded(other)
    if _is_list_of_text(one) and is_text(other):
        return one  # training reads a text as a list of one caption
    if _is_list_of_text(other) and is_text(one):
        return other
    schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
    if any(map(pa.types.is_decimal, (one, other))) and any(map(pa.types.is_floating, (one, other))):
        return pa.float64()  # a smaller one would have other digits than the decimal
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _is_list_of_text(kind: pa.DataType) -> bool:
    return is_list(kind) and is_text(_unencoded(kind.value_type))


def _unencoded(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values; views as the types that Arrow can cast."""
    if pa.types.is_dictionary(kind):
        return _unencoded(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _cast(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    """A chunk under a type that `_common_type` found. Raises ArrowInvalid for values that the type does not hold exactly."""
    if chunk.type == kind:
        return chunk
    if pa.types.is_null(chunk.type):
        return pa.nulls(len(chunk), kind)
    if pa.types.is_dictionary(chunk.type):
        return _cast(chunk.dictionary_decode(), kind)
    if is_list(kind) and is_text(chunk.type):
        texts = chunk.to_pylist()
        return pa.array([None if text is None else [text] for text in texts], kind)
    found = chunk.cast(kind)
    if "decimal" in str(chunk.type) and "decimal" not in str(kind) and not found.cast(chunk.type).equals(chunk):
        raise pa.ArrowInvalid("a decimal would be rounded")  # Arrow takes that for safe
    return found


def captions_of(column: pa.ChunkedArray) -> list[list[str]]:
    """The captions of each row of a sidecar: its column holds text, or lists where the table had several for an image."""
    several = is_list(column.type)
    return [[] if value is None else list(value) if several else [value] for value in column.to_pylist()]


def holds_captions(kind: pa.DataType) -> bool:
    """True for text, lists of text, and columns of which a shard has no value."""
    if pa.types.is_dictionary(kind) or is_list(kind):
        return holds_captions(kind.value_type)
    return is_text(kind) or pa.types.is_null(kind)


def as_text(array: pa.Array) -> pa.Array:
    """Text as it is, and everything else as JSON text."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        return array.cast(pa.large_string())
    if pa.types.is_floating(array.type):  # JSON has no NaN and no infinity
        return pa.array([None if value is None else repr(value) for value in array.to_pylist()], pa.large_string())
    return pa.array([None if value is None else json_text(value) for value in json_values(array)], pa.large_string())


def json_text(value: Any) -> str:
    """Text as it is, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def write_sidecar(table: pa.Table, path: Path) -> None:
    """Writes a sidecar. Columns that parquet cannot hold are stored as text, and named in the log."""
    try:
        pq.write_table(table, path, compression="zstd")
    except pa.ArrowException as error:
        bad = [name for name in table.column_names if not _fits_parquet(table.select([name]))]
        if not bad:
            raise
        for name in bad:
            _say_that_it_is_text(name, f"parquet cannot hold its values: {error}")
            text = pa.chunked_array([as_text(chunk) for chunk in table[name].chunks], pa.large_string())
            table = table.set_column(table.column_names.index(name), name, text)
        pq.write_table(table, path, compression="zstd")


def _fits_parquet(table: pa.Table) -> bool:
    try:
        pq.write_table(table, pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True

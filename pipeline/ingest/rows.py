"""Reads row ranges of tables.

In: a table's address and a row range. Out: its rows, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.ingest.tables import BATCH_ROWS, read_batches


def iter_rows(table: str, first_row: int, num_rows: int, batch_rows: int = BATCH_ROWS) -> Iterator[dict[str, Any]]:
    """Reads a row range as dicts of all columns."""
    left = num_rows
    for batch in read_batches(table, first_row, batch_rows):
        part = batch.slice(0, left)
        left -= part.num_rows
        yield from _to_dicts(part)
        if left == 0:
            return


def _to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as dicts. Parquet strings may hold invalid UTF-8, which is replaced, so that only that row fails."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = {
            name: [
                None if value is None else value.decode("utf-8", "replace") for value in column.cast(pa.binary()).to_pylist()
            ]
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            else column.to_pylist()
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

"""Small parquet files, read in the calling thread."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(file: bytes | BinaryIO | io.BufferedIOBase, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a file's table, or some of its columns.

    Uses none of pyarrow's threads: they keep a reference to a Python file for a moment after the table is returned, and a
    process that exits in that moment is aborted (docs/LOG.md).

    Raises:
        pa.ArrowInvalid: it is not a parquet file, or has no such column.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    wanted = None if columns is None else list(columns)
    return pq.read_table(source, columns=wanted, use_threads=False, pre_buffer=False)


def parquet_columns(file: bytes) -> list[str]:
    """The names of a file's columns, from its end alone. Raises pa.ArrowInvalid: it is not a parquet file."""
    return list(pq.read_schema(io.BytesIO(file)).names)

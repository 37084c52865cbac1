"""Small parquet files, read in the thread that asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(file: bytes | BinaryIO | io.BufferedIOBase, columns: Sequence[str] | None = None) -> pa.Table:
    """A file's table, or some of its columns.

    pyarrow's own threads would keep a file of Python's for a moment after the table is there, and a process that ends in that
    moment is aborted (docs/LOG.md).

    Raises:
        pa.ArrowInvalid: it is no parquet, or has no such column.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    wanted = None if columns is None else list(columns)
    return pq.read_table(source, columns=wanted, use_threads=False, pre_buffer=False)

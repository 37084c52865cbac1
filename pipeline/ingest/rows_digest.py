"""The hash of rows by which a data set knows what it holds: edited rows and renamed columns have another one.

In: rows, all at once or batch by batch. Out: hex digits of a sha256, which do not depend on how a file was read in blocks.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipeline.dataset.json_values import is_bytes, json_values
from pipeline.dataset.valid_text import exact_values, has_unknown_zone, with_valid_text
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_lines import ROW_TEXT


class RowsDigest:
    """A hash over the contents of rows that come in batches of one schema."""

    def __init__(self) -> None:
        self._text = hashlib.sha256()
        self._others: dict[str, Any] | None = None

    def update(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Adds the rows of a table or a batch."""
        is_first = self._others is None
        if self._others is None:
            self._others = {name: hashlib.sha256() for name in _unlike_csv(rows.schema)}
        self._text.update(_csv_text(rows, list(self._others), is_first))
        for name, digest in self._others.items():
            column = rows.column(name)
            for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                for place in range(len(array)):  # images: one copy at a time
                    digest.update(_content(array, place))

    def hexdigest(self) -> str:
        whole = self._text.copy()
        for name, digest in (self._others or {}).items():
            whole.update(repr([name, digest.hexdigest()]).encode("utf-8", "surrogatepass"))
        return whole.hexdigest()


def hash_rows(rows: pa.Table) -> str:
    """The hash of rows; those of a text table that keeps its lines are hashed by them."""
    if ROW_TEXT in rows.column_names:
        return hashlib.sha256(b"\n".join(rows[ROW_TEXT].to_pylist())).hexdigest()
    digest = RowsDigest()
    digest.update(rows)
    return digest.hexdigest()


def hash_rows_as_before(rows: pa.Table) -> str:
    """The hash of earlier releases: columns that CSV cannot hold had no names in it."""
    if ROW_TEXT in rows.column_names:
        return hash_rows(rows)
    others = _unlike_csv(rows.schema)
    digest = hashlib.sha256(_csv_text(rows, others, True))
    for name in others:
        digest.update(repr(exact_values(rows.column(name))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _csv_text(rows: pa.Table | pa.RecordBatch, others: list[str], with_header: bool) -> pa.Buffer:
    """The columns that CSV can hold, as text, which does not depend on how batches were cut."""
    if BAD_ROW in rows.schema.names:  # that a row is bad, but not the words for it
        rows = rows.set_column(rows.schema.get_field_index(BAD_ROW), BAD_ROW, pc.is_valid(rows.column(BAD_ROW)))
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(rows.drop_columns(others) if others else rows, sink, pa_csv.WriteOptions(include_header=with_header))
    return sink.getvalue()


def _content(array: pa.Array, place: int) -> bytes:
    """A value's bytes, which no other value has: exact, also where Python has no object for it."""
    if is_bytes(array.type):
        content = array[place].as_py()
        return b"-" if content is None else b"%d:%b" % (len(content), content)
    try:
        value = array[place].as_py()
    except (ArithmeticError, ValueError, LookupError):  # UnicodeDecodeError is a ValueError
        (value,) = json_values(with_valid_text(array.slice(place, 1))[0])
    return f"{value!r}\n".encode("utf-8", "surrogatepass")


def _unlike_csv(schema: pa.Schema) -> list[str]:
    """Names of the columns whose values pyarrow cannot write as CSV text."""
    return [field.name for field in schema if not _is_plain(field.type) or has_unknown_zone(field.type)]


def _is_plain(kind: pa.DataType) -> bool:
    """True if pyarrow can write values of a type as CSV text."""
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_text or pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)

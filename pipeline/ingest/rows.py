"""Rows of a table, as a partition needs them: URL, caption and image as values, all other columns as Arrow arrays.

In: a table's address, a row range, and the names of the columns that are interpreted. Out: the rows, in order. Only one batch
of them is held at a time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import IngestConfig
from pipeline.dataset.columns import Extra, ExtraRow
from pipeline.dataset.json_values import is_bytes, is_list
from pipeline.dataset.valid_text import with_valid_text
from pipeline.errors import InputError
from pipeline.ingest.column_types import is_url_type
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.hints import hint_before
from pipeline.ingest.row_numbers import row_range
from pipeline.ingest.rows_digest import RowsDigest
from pipeline.ingest.tables import BATCH_ROWS, read_batches

logger = logging.getLogger(__name__)
LOOKED_AT = 100
"""First rows of a table that are looked at before it is fetched."""
HELD_ROWS = 64
"""Batch size for reading tables that hold the images themselves."""


@dataclass(frozen=True)
class SourceRow:
    """One row of a table.

    Attributes:
        url: None: the table has no URL here; bytes: the URL is not UTF-8.
        caption: the value of its column; bytes stand for text that is not UTF-8.
        image: the encoded image, if the table holds them; otherwise b"".
        extra: the columns that are not interpreted.
        problem: why a line of a text table cannot be read; its values are then null.
    """

    url: Any
    caption: Any
    image: bytes
    extra: ExtraRow
    problem: str | None = None


def read_range(table: str, first_row: int, num_rows: int, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Reads a row range in batches."""
    left = num_rows
    for batch in read_batches(table, first_row, batch_rows):
        part = batch.slice(0, left)
        left -= part.num_rows
        yield part
        if left == 0:
            return


def iter_rows(table: str, first_row: int, num_rows: int, config: IngestConfig, sha256: str = "") -> Iterator[SourceRow]:
    """Reads a row range. Logs how many values of other columns were not UTF-8, once for each column.

    Args:
        sha256: the rows' hash, if it is to be checked.

    Raises:
        InputError: after the last row, if the rows have another hash.
    """
    digest = RowsDigest()
    replaced: Counter[str] = Counter()
    dictionaries: dict[str, pa.Array] = {}
    for batch in read_range(table, first_row, num_rows, HELD_ROWS if config.bytes_column else BATCH_ROWS):
        names, count = batch.schema.names, batch.num_rows
        if sha256:
            digest.update(batch)
        # Beside images, a column of this name that is no text is none of ours.
        has_urls = config.url_column in names and is_url_type(batch.schema.field(config.url_column).type)
        own = {
            BAD_ROW,
            config.caption_column,
            *[config.url_column] * has_urls,
            *[config.bytes_column] * bool(config.bytes_column),
        }
        urls = interpreted(batch.column(config.url_column)) if has_urls else [None] * count
        captions = interpreted(batch.column(config.caption_column))
        images = _image_column(batch.column(config.bytes_column)) if config.bytes_column else None
        problems = batch.column(BAD_ROW).to_pylist() if BAD_ROW in names else [None] * count
        extra = Extra(_passed_on(batch.select([name for name in names if name not in own]), replaced, dictionaries))
        for index in range(count):
            image = b"" if images is None else _held_bytes(images[index].as_py())
            yield SourceRow(urls[index], captions[index], image, extra.row(index), problems[index])
    if sha256 and digest.hexdigest() != sha256:
        raise InputError(
            f"ingest.input={table}: {row_range(first_row, num_rows)} are not those that were planned: the table "
            "was written again meanwhile; run the command again, and change a table only between runs"
        )
    for name, number in replaced.items():
        logger.warning(
            "%s, %s: column %s: %d values are not UTF-8 text; U+FFFD stands for the bytes that are not",
            *(table, row_range(first_row, num_rows), name, number),
        )


def _passed_on(batch: pa.RecordBatch, replaced: Counter[str], dictionaries: dict[str, pa.Array]) -> pa.RecordBatch:
    """The columns with valid text. Batches share equal dictionaries: a reader gives each batch a copy of its own."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        column, count = with_valid_text(column)
        if count:
            replaced[name] += count
        if pa.types.is_dictionary(column.type):
            if name in dictionaries and dictionaries[name].equals(column.dictionary):
                column = pa.DictionaryArray.from_arrays(column.indices, dictionaries[name], ordered=column.type.ordered)
            dictionaries[name] = column.dictionary
        columns.append(column)
    schema = pa.schema([pa.field(field.name, field.type, metadata=field.metadata) for field in batch.schema])
    return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else batch


def interpreted(column: pa.Array) -> list[Any]:
    """Values of a URL or caption column: text, or bytes where it is not UTF-8; lists of these; numbers as Python's.

    A float keeps the digits of its own precision: 0.1 as float32 is 0.1.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return interpreted(column.dictionary_decode())
    if is_list(kind):
        values = iter(interpreted(column.flatten()))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else [next(values) for _ in range(length)] for length in lengths]
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        exact = np.float16 if pa.types.is_float16(kind) else np.float32
        return [None if value is None else float(str(exact(value))) for value in column.to_pylist()]
    if is_bytes(kind):
        return [None if value is None else _text(value) for value in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return interpreted(column.cast(pa.large_binary()))


def foresee_refused_paths(table: str, rows: pa.Table, config: IngestConfig) -> None:
    """Warns if the first rows of a table are paths and none may be read, before all of them fail."""
    if config.bytes_column or config.url_column not in rows.column_names or not is_url_type(rows[config.url_column].type):
        return
    urls = interpreted(rows[config.url_column].slice(0, LOOKED_AT).combine_chunks())
    named = [url for url in urls if isinstance(url, str)]
    if remedy := hint_before(named, config.fetch):
        logger.warning("ingest.input=%s: its first rows are paths, such as %s: %s", table, named[0], remedy)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _image_column(column: pa.Array) -> pa.Array:
    """The column with the bytes. Hugging Face's data sets store images as {bytes, path}."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _held_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""

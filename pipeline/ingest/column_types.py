"""Refuses tables whose columns of URLs, captions or images hold something else, before a row is fetched.

In: a table's schema. Out: an InputError that names the column, its type and the remedy. The columns that are not interpreted
may have any type.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.dataset.json_values import is_bytes, is_list, is_text
from pipeline.errors import InputError


def check_column_types(table: str, schema: pa.Schema, config: IngestConfig) -> None:
    """Checks the types of the columns that ingestion interprets. Columns that are missing are not checked.

    Raises:
        InputError: a column cannot hold what its key says.
    """
    kinds = {field.name: _values(field.type) for field in schema}
    if config.caption_column in kinds:
        _check_captions(table, kinds[config.caption_column], config.caption_column)
    if config.bytes_column:
        if config.bytes_column in kinds and not _holds_images(kinds[config.bytes_column]):
            raise InputError(
                f"ingest.bytes_column={config.bytes_column}: {table} holds {kinds[config.bytes_column]} there; images are "
                "bytes, or a struct with a field `bytes`: write them as such, or name another column"
            )
    elif config.url_column in kinds and not is_url_type(kinds[config.url_column]):
        raise InputError(
            f"ingest.url_column={config.url_column}: {table} holds {kinds[config.url_column]} there; a URL is text: write one "
            "URL in each row, or name another column"
        )


def is_url_type(kind: pa.DataType) -> bool:
    """True for the types of a column of URLs."""
    return _is_text(_values(kind))


def _check_captions(table: str, kind: pa.DataType, column: str) -> None:
    if _is_text(kind) or _is_number(kind) or (is_list(kind) and _is_text(_values(kind.value_type))):
        return
    remedy = "write the captions as text, or name another column"
    if pa.types.is_struct(kind):
        texts = [field.name for field in kind if _is_text(_values(field.type))]
        fields = f"one of its fields ({', '.join(texts)})" if texts else "the captions"
        remedy = f"write {fields} into a column of text, and name that column"
    raise InputError(
        f"ingest.caption_column={column}: {table} holds {kind} there; a caption is text, a number, or a list of texts: {remedy}"
    )


def _values(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values; any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    """True for text, bytes of text, and columns without any value."""
    return is_text(kind) or is_bytes(kind) or pa.types.is_null(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        places = kind.get_all_field_indices("bytes")
        return len(places) == 1 and _holds_images(kind.field(places[0]).type)
    return is_bytes(kind) or pa.types.is_null(kind)

"""Recognises the rows of a table that was written again with more columns.

In: a range of rows as they are now, and its record. Out: whether the rows are those of the record but for the new columns, and
what people are told. The data set's rows stay as they are; only rows that are ingested from now on have the new columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.dataset.columns import COLUMNS, free_names
from pipeline.dataset.manifest import PartitionRecord, ShardRecord
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_lines import ROW_TEXT
from pipeline.ingest.retry import RETRY_OF, names_in_table
from pipeline.ingest.rows_digest import hash_rows, hash_rows_as_before
from pipeline.storage.base import Storage
from pipeline.storage.parquet import parquet_columns

SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class ColumnChange:
    """Columns that a table has now and the data set's rows of it do not, and the reverse."""

    added: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"it has the new columns {', '.join(self.added)}"] * bool(self.added)
        parts += [f"it has lost the columns {', '.join(self.missing)}"] * bool(self.missing)
        return " and ".join(parts)


def column_change(storage: Storage, shards: Sequence[ShardRecord], names: Sequence[str], config: IngestConfig) -> ColumnChange:
    """Compares a table's columns with those of the sidecar that holds its rows.

    Args:
        shards: those that hold the rows; one of them is read.
        names: the table's columns.
    """
    try:
        held = parquet_columns(storage.read(shards[0].sidecar_path)) if shards else []
    except (FileNotFoundError, pa.ArrowException):
        held = []
    if not held:
        return ColumnChange()
    own = {config.url_column, config.caption_column, config.bytes_column, BAD_ROW, ROW_TEXT}
    others = [name for name in names if name not in own]
    stored = dict(zip(others, free_names(others, COLUMNS.names), strict=True))
    missing = [name for name in held if name not in (*COLUMNS.names, *stored.values(), RETRY_OF)]
    added = tuple(name for name in others if stored[name] not in held)
    return ColumnChange(added, tuple(names_in_table(missing, config)))


def is_unchanged_without(added: Collection[str], chunk: pa.Table, record: PartitionRecord) -> bool:
    """True if a record's rows are these without the added columns."""
    if ROW_TEXT in chunk.column_names:
        texts = [_without_members(text, added) for text in chunk[ROW_TEXT].to_pylist()]
        return record.rows_sha256 == hash_rows(pa.table({ROW_TEXT: pa.array(texts, pa.large_binary())}))
    kept = chunk.drop_columns([name for name in added if name in chunk.column_names])
    return record.rows_sha256 in (hash_rows(kept), hash_rows_as_before(kept))


def _without_members(line: bytes, names: Collection[str]) -> bytes:
    """An object's line without some of its members, and otherwise as it is written; any other line unchanged."""
    try:
        text = line.decode()
        spans = _members(text)
    except (ValueError, RecursionError, IndexError):
        return line
    if not any(name in names for name, _, _ in spans):
        return line
    kept = ""
    for place, (name, start, stop) in enumerate(spans):
        if name not in names:
            kept += text[spans[place - 1][2] if kept else start : stop]
    return (text[: spans[0][1]] + kept + text[spans[-1][2] :]).encode()


def _members(text: str) -> list[tuple[str, int, int]]:
    """The members of an object: (name, where it begins, where its value ends)."""
    spans = []
    place = _skip(text, 1)
    while text[place] != "}":
        start = place
        name, place = DECODER.raw_decode(text, place)
        _, place = DECODER.raw_decode(text, _skip(text, _skip(text, place) + 1))
        spans.append((name, start, place))
        place = _skip(text, place)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return spans


def _skip(text: str, place: int) -> int:
    space = SPACE.match(text, place)
    assert space is not None  # it matches the empty string
    return space.end()

"""Plans a run of ingestion: finds the row ranges of the input that the data set does not hold yet.

In: the configuration, the tables and the data set's latest manifest. Out: partitions to fetch, and completion records that an
earlier run left uncommitted. Starts no work. A table whose file has not changed since all its rows were ingested is not read;
any other table is streamed once, and rows that are already held are checked for changes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, list_versions, partition_path, read_manifest, short_hash
from pipeline.errors import InputError
from pipeline.ingest.column_types import check_column_types
from pipeline.ingest.tables import (
    check_columns,
    column_names,
    hash_rows,
    hide_userinfo,
    is_seekable,
    is_settled,
    list_tables,
    read_chunks,
    table_identity,
)
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage

INPUTS = "inputs/"
"""Folder of a data set with notes on its tables, and with rows of text tables that wait for a worker."""


@dataclass(frozen=True)
class PartitionSpec:
    """A row range to ingest; all fields but the last two are those of its record in the manifest.

    Attributes:
        rows_path: table to read the rows from; "" for the input itself.
        rows_first: the range's first row in that table.
    """

    id: str
    input_path: str
    first_row: int
    num_rows: int
    rows_sha256: str
    options_fingerprint: str
    rows_path: str
    rows_first: int


class TableNote(BaseModel):
    """A note that all rows of a table's file were ingested: while the file keeps this identity, it is not read again."""

    input_path: str
    options_fingerprint: str
    identity: str
    num_rows: int

    @property
    def path(self) -> str:
        return note_path(self.input_path, self.options_fingerprint)


def note_path(table: str, fingerprint: str) -> str:
    """Path of a table's note."""
    return f"{INPUTS}{short_hash([table, fingerprint])}.json"


@dataclass(frozen=True)
class IngestPlan:
    """The work of a run.

    Attributes:
        partitions: row ranges to fetch.
        adopted: records of partitions that an earlier run finished but did not commit.
        rows_held: rows that the data set already holds.
        notes: notes of the tables that were read, to be written once all their rows are held.
    """

    partitions: list[PartitionSpec]
    adopted: list[PartitionRecord]
    rows_held: int
    notes: list[TableNote]

    @property
    def num_rows(self) -> int:
        return sum(spec.num_rows for spec in self.partitions)

    def __str__(self) -> str:
        tables = len({spec.input_path for spec in self.partitions})
        return (
            f"{self.num_rows:,} rows to fetch, in {len(self.partitions):,} partitions of {tables:,} tables\n"
            f"{sum(record.num_rows for record in self.adopted):,} rows finished by an earlier run, to be committed\n"
            f"{self.rows_held:,} rows already held"
        )


def plan_ingest(config: IngestConfig, dry_run: bool = False) -> IngestPlan:
    """Compares the input with the data set.

    Args:
        dry_run: write nothing; for text tables the plan can then only be shown, not run.

    Raises:
        InputError: the input or the output cannot be used, or rows have changed since they were ingested.
    """
    if not config.output:
        raise InputError("ingest.output: is empty; name the folder or the s3://bucket/prefix of the data set")
    tables = list_tables(config.input)
    storage = open_storage(config.output)
    manifest = read_manifest(storage) if list_versions(storage) else None
    fingerprint = options_fingerprint(config)
    finished = {item.path for item in storage.list("partitions/")}
    notes_there = {item.path for item in storage.list(INPUTS)}
    planner = _Planner(config, storage, fingerprint, finished, dry_run)
    rows_held, notes = 0, []
    for table in tables:
        held = _held_ranges(manifest, table, fingerprint)
        num_held = sum(record.num_rows for record in held)
        rows_held += num_held
        note = TableNote(input_path=table, options_fingerprint=fingerprint, identity=table_identity(table), num_rows=num_held)
        if note.path in notes_there and TableNote.model_validate_json(storage.read(note.path)) == note:
            continue
        settled = is_settled(table)
        columns = column_names(table)
        if columns is None and held:
            raise _edited(table, held[0])
        if columns is None:
            continue  # the table is still empty
        check_columns(table, columns, config)
        num_rows = planner.plan_table(table, held)
        if settled:  # otherwise its last line may have been skipped, and it must be read again
            notes.append(note.model_copy(update={"num_rows": num_rows}))
    if planner.partitions and not dry_run:
        storage.check_writable()
    return IngestPlan(planner.partitions, planner.adopted, rows_held, notes)


def options_fingerprint(config: IngestConfig) -> str:
    """16 hex digits over the options that change the bytes of a shard."""
    columns = [config.url_column, config.caption_column, config.bytes_column]
    options = {"columns": columns, "image": config.image.fingerprint_options(), "caption": config.caption.model_dump()}
    return short_hash(options)


class _Planner:
    """Collects missing row ranges, table by table."""

    def __init__(self, config: IngestConfig, storage: Storage, fingerprint: str, finished: set[str], dry_run: bool) -> None:
        self.partitions: list[PartitionSpec] = []
        self.adopted: list[PartitionRecord] = []
        self._config, self._storage, self._fingerprint = config, storage, fingerprint
        self._finished, self._dry_run = finished, dry_run

    def plan_table(self, table: str, held: list[PartitionRecord]) -> int:
        """Adds the ranges that are not held, and checks those that are. Returns the table's number of rows."""
        first_row, by_first = 0, {record.first_row: record for record in held}
        for chunk in read_chunks(table, _sizes(held, self._config.partition_size_rows)):
            check_column_types(table, chunk.schema, self._config)
            digest = hash_rows(chunk)
            if first_row not in by_first:
                self._add(table, first_row, chunk, digest)
            elif digest != by_first[first_row].rows_sha256:
                raise _edited(table, by_first[first_row])
            first_row += chunk.num_rows
        if held and held[-1].first_row >= first_row:
            raise _edited(table, held[-1])
        return first_row

    def _add(self, table: str, first_row: int, chunk: pa.Table, digest: str) -> None:
        identity = [table, first_row, chunk.num_rows, digest, self._fingerprint]
        partition = short_hash(identity)
        path = partition_path(partition)
        if path in self._finished:
            self.adopted.append(PartitionRecord.model_validate_json(self._storage.read(path)))
            return
        seekable = is_seekable(table)
        rows_path = "" if seekable else self._storage.address(f"{INPUTS}{partition}.parquet")
        if not seekable and not self._dry_run:
            self._keep_rows(f"{INPUTS}{partition}.parquet", chunk)
        self.partitions.append(
            PartitionSpec(
                id=partition,
                input_path=table,
                first_row=first_row,
                num_rows=chunk.num_rows,
                rows_sha256=digest,
                options_fingerprint=self._fingerprint,
                rows_path=rows_path,
                rows_first=first_row if seekable else 0,
            )
        )

    def _keep_rows(self, path: str, chunk: pa.Table) -> None:
        """Stores rows for a worker, which would otherwise have to read a text table from its start."""
        if self._storage.exists(path):
            return
        with tempfile.TemporaryDirectory(prefix="rayclip-") as folder:
            rows = hide_userinfo(chunk, self._config.url_column)
            pq.write_table(rows, Path(folder) / "rows.parquet", compression="zstd")
            self._storage.write_file(path, Path(folder) / "rows.parquet")


def _held_ranges(manifest: Manifest | None, table: str, fingerprint: str) -> list[PartitionRecord]:
    """The data set's ranges of a table, by row. Raises InputError if they were ingested under other options."""
    if manifest is None:
        return []
    held = sorted((record for record in manifest.partitions if record.input_path == table), key=lambda record: record.first_row)
    if any(record.options_fingerprint != fingerprint for record in held):
        raise InputError(
            f"ingest.input={table}: the data set holds rows of this table that were ingested under other options "
            "(ingest.image.*, ingest.caption.*, column names); use the same options, or choose another ingest.output"
        )
    return held


def _sizes(held: list[PartitionRecord], partition_size_rows: int) -> Iterator[int]:
    """Sizes of a table's chunks: held ranges unchanged, the gaps and the rest in partitions."""
    position = 0
    for record in held:
        while position < record.first_row:
            size = min(partition_size_rows, record.first_row - position)
            yield size
            position += size
        yield record.num_rows
        position += record.num_rows
    while True:
        yield partition_size_rows


def _edited(table: str, record: PartitionRecord) -> InputError:
    return InputError(
        f"ingest.input={table}: rows {record.first_row} to {record.first_row + record.num_rows - 1} have changed since they "
        "were ingested; a table may only grow at its end: restore it, or put changed rows into a new table"
    )

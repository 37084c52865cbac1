"""Plans a run of ingestion: finds the row ranges of the input that the data set does not hold yet.

In: the configuration, the tables and the data set's latest manifest. Out: partitions to fetch, and completion records that an
earlier run left uncommitted. Starts no work. A table whose file has not changed since all its rows were ingested is not read;
any other table is streamed, and rows that are already held are checked for changes, by the reader that hashed them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, list_versions, partition_path, read_manifest, short_hash
from pipeline.errors import InputError
from pipeline.ingest.added_columns import ColumnChange, column_change, is_unchanged_without
from pipeline.ingest.column_types import check_column_types
from pipeline.ingest.held_text_rows import divide, edited
from pipeline.ingest.image_folder import is_listing, is_same_listing
from pipeline.ingest.options import fingerprints_of_alike, keep_options, options_fingerprint
from pipeline.ingest.other_tables import OtherTables, compare_options
from pipeline.ingest.outcome import Lineage
from pipeline.ingest.retry import in_retries, is_same_retry, shards_of
from pipeline.ingest.rows import foresee_refused_paths
from pipeline.ingest.rows_digest import hash_rows, hash_rows_as_before
from pipeline.ingest.stored_names import StoredNames
from pipeline.ingest.table_files import list_tables, say_what_is_skipped
from pipeline.ingest.tables import (
    check_columns,
    check_kinds,
    check_spaces,
    column_names,
    cut_chunks,
    hide_userinfo,
    is_seekable,
    read_batches,
    readable,
    table_identity,
    without_row_text,
)
from pipeline.ingest.text_tables import READER, is_delimited, open_text_table
from pipeline.storage.address import open_storage, real_address
from pipeline.storage.base import Storage
from pipeline.storage.put_if_absent import ensure_put_if_absent

logger = logging.getLogger(__name__)

INPUTS = "inputs/"
"""Folder of a data set with notes on its tables, and with rows of text tables that wait for a worker."""


@dataclass(frozen=True)
class PartitionSpec:
    """A row range to ingest; the fields that are not described are those of its record in the manifest.

    Attributes:
        rows_path: table to read the rows from; "" for the input itself.
        rows_first: the range's first row in that table.
        source_table: of a retry, the table that its rows came from; "" for the input itself.
    """

    id: str
    input_path: str
    first_row: int
    num_rows: int
    rows_sha256: str
    options_fingerprint: str
    rows_path: str
    rows_first: int
    text_reader: str = ""
    source_table: str = ""


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
        tables: all tables of the input, read or not.
    """

    partitions: list[PartitionSpec]
    adopted: list[PartitionRecord]
    rows_held: int
    notes: list[TableNote]
    tables: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        return sum(spec.num_rows for spec in self.partitions)

    @property
    def attempted_tables(self) -> tuple[str, ...]:
        """The input's tables; of a retry, which lists those of earlier retries too, the tables with work if there are any."""
        work = {spec.input_path for spec in self.partitions} | {record.input_path for record in self.adopted}
        return tuple(sorted(work)) if work and all(map(in_retries, work)) else self.tables

    def __str__(self) -> str:
        tables = len({spec.input_path for spec in self.partitions})
        return (
            f"{self.num_rows:,} rows to fetch, in {len(self.partitions):,} partitions of {tables:,} tables\n"
            f"{sum(record.num_rows for record in self.adopted):,} rows finished by an earlier run, to be committed\n"
            f"{self.rows_held:,} rows already held"
        )


def plan_ingest(config: IngestConfig, dry_run: bool = False, output_is_checked: bool = False) -> IngestPlan:
    """Compares the input with the data set.

    Args:
        dry_run: write nothing; for text tables the plan can then only be shown, not run.
        output_is_checked: this run has tested the output's put-if-absent already.

    Raises:
        InputError: the input or the output cannot be used, or rows have changed since they were ingested.
    """
    if not config.output:
        raise InputError("ingest.output: is empty; name the folder or the s3://bucket/prefix of the data set")
    listed = list_tables(config.input)
    if config.column_names and not any(map(is_delimited, listed)):
        raise InputError(
            f"ingest.column_names={list(config.column_names)}: names the columns of csv and tsv tables, and {config.input} has "
            "none; remove the key"
        )
    storage = open_storage(config.output, bool(config.single_writer))
    manifest = read_manifest(storage) if list_versions(storage) else None
    tables = _each_once(config.input, listed, [record.input_path for record in manifest.partitions] if manifest else [])
    fingerprint = options_fingerprint(config)
    finished = {item.path for item in storage.list("partitions/")}
    notes_there = {item.path for item in storage.list(INPUTS)}
    committed = {record.path for record in manifest.partitions} if manifest else set()
    planner = _Planner(config, storage, fingerprint, finished, committed, dry_run)
    planner.manifest, planner.others = manifest, OtherTables(manifest, config.allow_copies)
    planner.output_is_checked = dry_run or output_is_checked
    rows_held, notes, empty = 0, [], []
    for table in tables:
        held = _held_ranges(manifest, table, fingerprints_of_alike(config))
        num_held = sum(record.num_rows for record in held)
        rows_held += num_held
        note = TableNote(input_path=table, options_fingerprint=fingerprint, identity=table_identity(table), num_rows=num_held)
        if note.path in notes_there and TableNote.model_validate_json(storage.read(note.path)) == note:
            continue
        with readable(table):
            num_rows, settled = planner.plan_table(table, held)
        empty += [table] * (not num_rows)
        if settled and num_rows:  # otherwise its last line may have been skipped, and it must be read again
            notes.append(note.model_copy(update={"num_rows": num_rows}))
    say_what_is_skipped(f"ingest.input={config.input}", "without a row", tuple(empty), "table")
    if manifest and planner.partitions:
        compare_options(storage, manifest, {spec.input_path for spec in planner.partitions}, config)
    if planner.partitions and not dry_run:
        keep_options(storage, config)
        planner.names.keep()
    return IngestPlan(planner.partitions, planner.adopted, rows_held, notes, tuple(tables))


class _Planner:
    """Collects missing row ranges, table by table."""

    def __init__(
        self, config: IngestConfig, storage: Storage, fingerprint: str, finished: set[str], committed: set[str], dry_run: bool
    ) -> None:
        """
        Args:
            finished, committed: paths of completion records that exist, and of those that the data set's latest version names.
        """
        self.output_is_checked = False
        self.manifest: Manifest | None = None
        self.others, self.names = OtherTables(None), StoredNames(storage, config)
        self.partitions: list[PartitionSpec] = []
        self.adopted: list[PartitionRecord] = []
        self._config, self._storage, self._fingerprint = config, storage, fingerprint
        self._finished, self._committed, self._dry_run = finished, committed, dry_run
        self._change, self._said = ColumnChange(), set[str]()

    def plan_table(self, table: str, held: list[PartitionRecord]) -> tuple[int, bool]:
        """Adds the ranges that are not held, and checks those that are.

        Returns:
            (the table's number of rows, False if more rows may be in its file than could be read now).
        """
        if not is_seekable(table):
            return self._plan_text(table, held)
        columns = column_names(table)
        if columns is not None:
            check_columns(table, columns, self._config)
            num_rows = self._plan_rows(table, "", read_batches(table), 0, held)
            self._check_end(table, held, num_rows)
            return num_rows, True
        self._check_end(table, held, 0)
        return 0, True

    def _plan_text(self, table: str, held: list[PartitionRecord]) -> tuple[int, bool]:
        readers = [record.text_reader for record in held if record.text_reader]
        text = open_text_table(table, self._config.column_names, max(readers, default=READER))
        if held and not text.has_rows():
            raise edited(table, held[0])
        if not text.has_rows():
            return 0, text.source.settled
        if not held:
            check_spaces(text, self._config.column_names)
        check_columns(table, list(text.columns), self._config)
        check_kinds(text, self._config)
        if self._config.caption_column in text.fields:
            text.fields[self._config.caption_column].of_captions = True
        stretches, adopted = divide(
            text, held, self._unfinished(table), lambda record: self._change_since(record, text.columns)
        )
        for record in adopted:
            self._adopt(record)
        first_row = 0
        for stretch in stretches:
            batches = text.batches(stretch.start, stretch.stop)
            inside = [record for record in held if record.text_reader and record.first_row >= stretch.first_row]
            first_row = self._plan_rows(table, text.reader, batches, stretch.first_row, inside)
        self._check_end(table, held, first_row)
        return first_row, text.source.settled

    def _plan_rows(
        self, table: str, reader: str, batches: Iterable[pa.RecordBatch], first_row: int, held: list[PartitionRecord]
    ) -> int:
        """Plans consecutive rows, of which `first_row` is the first. Returns the number of the row after them."""
        by_first = {record.first_row: record for record in held}
        for chunk in cut_chunks(batches, _sizes(held, first_row, self._config.partition_size_rows)):
            check_column_types(table, chunk.schema, self._config)
            digest = hash_rows(chunk)
            if first_row not in by_first:
                if first_row == 0:
                    foresee_refused_paths(table, chunk, self._config)
                self.others.compare(table, first_row, chunk, digest)
                self.names.add(table, chunk.column_names)
                self._add(table, reader, first_row, without_row_text(chunk), digest)
            elif not is_listing(table) and not _is_unchanged(by_first[first_row], chunk, digest):
                self._check_without_added(table, by_first[first_row], chunk)
            first_row += chunk.num_rows
        return first_row

    def _check_without_added(self, table: str, record: PartitionRecord, chunk: pa.Table) -> None:
        """Raises InputError unless a record's rows are these without the columns that the table has got since."""
        if self._change.added and is_unchanged_without(self._change.added, chunk, record):
            return
        self._change = self._change_since(record, chunk.column_names)
        if not self._change.added or not is_unchanged_without(self._change.added, chunk, record):
            raise edited(table, record, self._change)
        if table not in self._said:
            self._said.add(table)
            logger.warning(
                "ingest.input=%s: has new columns: %s; only rows that are ingested from now on have them; to have them in all "
                "rows, ingest the table into a new ingest.output",
                table, ", ".join(self._change.added),
            )  # fmt: skip

    def _change_since(self, record: PartitionRecord, columns: Sequence[str]) -> ColumnChange:
        shards = shards_of(self.manifest, [record]) if self.manifest is not None else ()
        return column_change(self._storage, shards, columns, self._config)

    def _check_end(self, table: str, held: list[PartitionRecord], num_rows: int) -> None:
        if held and held[-1].first_row >= num_rows:
            raise edited(table, held[-1])

    def _unfinished(self, table: str) -> list[PartitionRecord]:
        """Completion records of a table that no version names."""
        return [
            record
            for record in self._uncommitted_records
            if record.input_path == table and record.options_fingerprint == self._fingerprint
        ]

    @cached_property
    def _uncommitted_records(self) -> list[PartitionRecord]:
        paths = sorted(self._finished - self._committed)
        return [PartitionRecord.model_validate_json(self._storage.read(path)) for path in paths]

    def _add(self, table: str, reader: str, first_row: int, chunk: pa.Table, digest: str) -> None:
        identity = [table, first_row, chunk.num_rows, digest, self._fingerprint]
        partition = short_hash(identity)
        path = partition_path(partition)
        if path in self._finished:
            self._adopt(PartitionRecord.model_validate_json(self._storage.read(path)))
            return
        self._check_output()
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
                text_reader=reader,
                source_table=Lineage(self.manifest).source_of(table) if in_retries(table) else "",
            )
        )

    def _adopt(self, record: PartitionRecord) -> None:
        self._check_output()
        self.adopted.append(record)

    def _check_output(self) -> None:
        """Tests the output once, before anything is written: a run with nothing to do needs no permission to write."""
        if not self.output_is_checked:
            ensure_put_if_absent(self._storage, self._config.single_writer, "ingest.single_writer")
            self.output_is_checked = True

    def _keep_rows(self, path: str, chunk: pa.Table) -> None:
        """Stores rows for a worker, which would otherwise have to read a text table from its start."""
        if self._storage.exists(path):
            return
        with tempfile.TemporaryDirectory(prefix="rayclip-") as folder:
            rows = hide_userinfo(chunk, self._config.url_column)
            pq.write_table(rows, Path(folder) / "rows.parquet", compression="zstd")
            self._storage.write_file(path, Path(folder) / "rows.parquet")


def _each_once(pattern: str, listed: Iterable[str], held: Iterable[str]) -> list[str]:
    """The tables without links to others of them, under the addresses by which the data set knows them."""
    by_file: dict[str, list[str]] = {}
    for table in listed:
        by_file.setdefault(real_address(table), []).append(table)
    known = {real_address(table): table for table in held}
    kept = {file: file if file in alike else alike[0] for file, alike in by_file.items()}
    links = [table for file, alike in by_file.items() for table in alike if table != kept[file]]
    if links:
        logger.warning("ingest.input=%s: skipped links to tables that are there too, such as %s", pattern, links[0])
    return [known.get(file, table) for file, table in kept.items()]


def _held_ranges(manifest: Manifest | None, table: str, fingerprints: set[str]) -> list[PartitionRecord]:
    """The data set's ranges of a table, by row. Raises InputError if they were ingested under other options."""
    if manifest is None:
        return []
    held = sorted(
        (record for record in manifest.partitions if _is_same_table(record.input_path, table)),
        key=lambda record: record.first_row,
    )
    if any(record.options_fingerprint not in fingerprints for record in held):
        raise InputError(
            f"ingest.input={table}: the data set holds rows of this table that were ingested under other options "
            "(ingest.image.*, ingest.caption.*, column names); use the same options, or choose another ingest.output"
        )
    return held


def _is_same_table(one: str, other: str) -> bool:
    return one == other or is_same_retry(one, other) or is_same_listing(one, other)


def _is_unchanged(record: PartitionRecord, chunk: pa.Table, digest: str) -> bool:
    """True if a record's rows are these, by their hash or by that of earlier releases."""
    return record.rows_sha256 == digest or record.rows_sha256 == hash_rows_as_before(chunk)


def _sizes(held: list[PartitionRecord], position: int, partition_size_rows: int) -> Iterator[int]:
    """Sizes of a table's chunks from a row on: held ranges unchanged, the gaps and the rest in partitions."""
    for record in held:
        while position < record.first_row:
            size = min(partition_size_rows, record.first_row - position)
            yield size
            position += size
        yield record.num_rows
        position += record.num_rows
    while True:
        yield partition_size_rows

"""What a run of ingestion has to do: the row ranges of the input that no version of the data set holds yet.

In: the configuration, the tables and the data set's latest manifest. Out: partitions to fetch, and completion records that an
earlier run left without committing them. Reads the tables once, streamed; starts nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from pipeline.config import IngestConfig
from pipeline.manifest import Manifest, PartitionRecord, list_versions, partition_path, read_manifest
from pipeline.source import check_columns, column_names, hash_rows, list_tables, read_chunks
from pipeline.storage import Storage, open_storage
from pipeline.types import InputError


@dataclass(frozen=True)
class PartitionSpec:
    """A row range to ingest; the fields are those of its record in the manifest."""

    id: str
    input_path: str
    first_row: int
    num_rows: int
    rows_sha256: str
    options_fingerprint: str


@dataclass(frozen=True)
class IngestPlan:
    """What a run will do.

    Attributes:
        partitions: to be fetched.
        adopted: finished by an earlier run that was stopped before its commit.
        rows_held: rows that the data set holds already.
    """

    partitions: list[PartitionSpec]
    adopted: list[PartitionRecord]
    rows_held: int


def plan_ingest(config: IngestConfig) -> IngestPlan:
    """Compares the input with the data set.

    Raises:
        InputError: the input or the output cannot be used, or rows that were ingested have changed since.
    """
    if not config.output:
        raise InputError("ingest.output: is empty; name the folder or the s3://bucket/prefix of the data set")
    tables = list_tables(config.input)
    storage = open_storage(config.output)
    manifest = read_manifest(storage) if list_versions(storage) else None
    fingerprint = options_fingerprint(config)
    specs: list[PartitionSpec] = []
    rows_held = 0
    for table in tables:
        columns = column_names(table)
        if columns is None:
            continue  # nothing has been written into it yet
        check_columns(table, columns, config)
        held = _held_ranges(manifest, table, fingerprint)
        rows_held += sum(record.num_rows for record in held)
        specs += _missing_ranges(table, held, fingerprint, config.partition_size_rows)
    finished = {item.path for item in storage.list("partitions/")}
    adopted = [_read_record(storage, spec.id) for spec in specs if partition_path(spec.id) in finished]
    done = {record.id for record in adopted}
    partitions = [spec for spec in specs if spec.id not in done]
    if partitions:
        storage.check_writable()
    return IngestPlan(partitions=partitions, adopted=adopted, rows_held=rows_held)


def options_fingerprint(config: IngestConfig) -> str:
    """16 hex digits over the options that change the bytes of a shard."""
    options = {"url": config.url_column, "caption": config.caption_column, "image": config.image.model_dump()}
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]


def _held_ranges(manifest: Manifest | None, table: str, fingerprint: str) -> list[PartitionRecord]:
    """The data set's ranges of a table under these options, by row."""
    if manifest is None:
        return []
    records = (record for record in manifest.partitions if record.input_path == table)
    return sorted(
        (record for record in records if record.options_fingerprint == fingerprint), key=lambda record: record.first_row
    )


def _missing_ranges(
    table: str, held: list[PartitionRecord], fingerprint: str, partition_size_rows: int
) -> Iterator[PartitionSpec]:
    """The ranges after those that are held; the held ones are checked to be what they were."""
    sizes = chain((record.num_rows for record in held), repeat(partition_size_rows))
    first_row, index = 0, 0
    for index, chunk in enumerate(read_chunks(table, sizes), start=1):
        digest = hash_rows(chunk)
        if index > len(held):
            yield PartitionSpec(
                id=_partition_id(table, first_row, chunk.num_rows, digest, fingerprint),
                input_path=table,
                first_row=first_row,
                num_rows=chunk.num_rows,
                rows_sha256=digest,
                options_fingerprint=fingerprint,
            )
        elif digest != held[index - 1].rows_sha256:
            raise _edited(table, held[index - 1])
        first_row += chunk.num_rows
    if index < len(held):
        raise _edited(table, held[index])


def _edited(table: str, record: PartitionRecord) -> InputError:
    return InputError(
        f"ingest.input={table}: rows {record.first_row} to {record.first_row + record.num_rows - 1} are not what they were "
        "when they were ingested; a table may only grow at its end: restore it, or put changed rows into a new table"
    )


def _partition_id(table: str, first_row: int, num_rows: int, rows_sha256: str, fingerprint: str) -> str:
    content = json.dumps([table, first_row, num_rows, rows_sha256, fingerprint])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read_record(storage: Storage, partition: str) -> PartitionRecord:
    return PartitionRecord.model_validate_json(storage.read(partition_path(partition)))

"""Retries failures: writes rows that failed for chosen reasons to tables, which are then ingested like any other.

For each partition with such rows a parquet table is written into the data set, named by its content. It holds the source's
rows, with the failure's key in the column `retry_of`. A failure is retried once; if it fails again, the next retry finds the
new failure.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.dataset.columns import COLUMNS, PREFIX, ExtraRows, free_names, split_columns
from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord, read_sidecar
from pipeline.errors import InputError
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet

FOLDER = "retries"
RETRY_OF = "retry_of"
RETRY_TABLE = re.compile(rf"/{FOLDER}/[0-9a-f]{{16}}-[0-9a-f]{{12}}\.parquet$")


@dataclass(frozen=True)
class RetryTable:
    """A table of failures of one partition; its path tells its content."""

    path: str
    num_rows: int
    content: bytes


def write_retry_tables(
    storage: Storage, manifest: Manifest, reasons: Sequence[str], config: IngestConfig, among: Collection[str] | None = None
) -> int:
    """Writes tables of all failures with these reasons that are in no retry yet. Returns their number of rows.

    Args:
        among: ids of the partitions whose failures count; None: of all.
    """
    rows = 0
    for table in _retry_tables(storage, manifest, reasons, config, among):
        storage.write_if_absent(table.path, table.content)
        rows += table.num_rows
    return rows


def count_new_retries(
    storage: Storage, manifest: Manifest, reasons: Sequence[str], config: IngestConfig, among: Collection[str] | None = None
) -> int:
    """Counts the rows of the tables that `write_retry_tables` would write."""
    return sum(table.num_rows for table in _retry_tables(storage, manifest, reasons, config, among))


def _retry_tables(
    storage: Storage, manifest: Manifest, reasons: Sequence[str], config: IngestConfig, among: Collection[str] | None
) -> Iterator[RetryTable]:
    retries: dict[str, list[PartitionRecord]] = defaultdict(list)
    for record in manifest.partitions:
        if in_retries(record.input_path):
            retries[retried_partition(record.input_path)].append(record)
    records_among = [record for record in manifest.partitions if among is None or record.id in among]
    wanted = [record for record in records_among if any(reason in reasons for reason in record.counts)]
    waiting = _waiting_keys(storage, manifest)
    is_rewritten = any(_is_elsewhere(record) for record in wanted)
    for records in [wanted] if is_rewritten else [[record] for record in wanted]:
        done = retried_keys(storage, manifest, [retry for record in records for retry in retries[record.id]]) | waiting
        for record, (own, extra) in _failures(storage, manifest, records, reasons, done):
            yield _table_of(record, own, extra, config)


def _waiting_keys(storage: Storage, manifest: Manifest) -> set[str]:
    """Keys of the failures in tables that an earlier retry wrote and did not finish; every retry ingests these tables."""
    held = {record.input_path.rpartition("/")[2] for record in manifest.partitions if in_retries(record.input_path)}
    keys: set[str] = set()
    for path in [item.path for item in storage.list(f"{FOLDER}/") if in_retries(f"/{item.path}")]:
        if path.rpartition("/")[2] not in held:
            keys.update(read_parquet(storage.read(path), [RETRY_OF])[RETRY_OF].to_pylist())
    return keys


def retried_keys(storage: Storage, manifest: Manifest, retries: Sequence[PartitionRecord]) -> set[str]:
    """Keys of the failures that some partitions of retries hold the results of. A takedown may have blanked some."""
    ids = {record.id for record in retries}
    keys = set()
    for shard in shards_of(manifest, retries):
        table = read_sidecar(storage, shard, ["key"], if_there=[RETRY_OF])
        if RETRY_OF in table.column_names:
            pairs = zip(table["key"].to_pylist(), table[RETRY_OF].to_pylist(), strict=True)
            keys |= {retried for key, retried in pairs if partition_of(key) in ids and retried}
    return keys


def shards_of(manifest: Manifest, records: Sequence[PartitionRecord]) -> list[ShardRecord]:
    """The shards that hold the rows of some partitions; all shards if a rewritten one, of several partitions, holds some."""
    if any(map(_is_elsewhere, records)):
        return list(manifest.shards)
    return [shard for record in records for shard in record.shards]


def partition_of(key: str) -> str:
    """Id of the partition that a row was ingested in."""
    return key.rpartition("-")[0]


def _is_elsewhere(record: PartitionRecord) -> bool:
    """True if a partition's rows were rewritten into a shard of another one."""
    return record.num_rows > 0 and not record.shards


def in_retries(table: str) -> bool:
    """True for a table that `write_retry_tables` wrote."""
    return RETRY_TABLE.search(table) is not None


def is_same_retry(one: str, other: str) -> bool:
    """True for the same table of retries, in a data set that may have been moved; its name says what it holds."""
    return one.rpartition("/")[2] == other.rpartition("/")[2] and in_retries(one) and in_retries(other)


def is_own_key(key: object) -> bool:
    """True for a key that ingestion gave, which no other row has."""
    return isinstance(key, str) and re.fullmatch(r"[0-9a-f]{16}-\d{6,}", key) is not None


def retried_partition(table: str) -> str:
    """Id of the partition whose rows a table of retries holds."""
    return table.rpartition("/")[2].partition("-")[0]


def _failures(
    storage: Storage, manifest: Manifest, records: Sequence[PartitionRecord], reasons: Sequence[str], done: set[str]
) -> list[tuple[PartitionRecord, tuple[list[dict[str, Any]], pa.Table]]]:
    """(partition, its rows that failed for these reasons and were not retried: our columns, and the others)."""
    own: dict[str, list[dict[str, Any]]] = defaultdict(list)
    extra: dict[str, ExtraRows] = defaultdict(ExtraRows)
    ids = {record.id for record in records}
    for shard in shards_of(manifest, records):
        for row, others in split_columns(read_sidecar(storage, shard)):
            partition = partition_of(row["key"])
            if partition in ids and row["reason"] in reasons and row["key"] not in done:
                own[partition].append(row)
                extra[partition].add(others)
    return [(record, (own[record.id], extra[record.id].table())) for record in records if record.id in own]


def _table_of(record: PartitionRecord, own: list[dict[str, Any]], others: pa.Table, config: IngestConfig) -> RetryTable:
    sink = pa.BufferOutputStream()
    if in_retries(record.input_path) and RETRY_OF in others.column_names:
        others = others.drop_columns([RETRY_OF])
    pq.write_table(_source_table(own, others, config), sink, compression="zstd")
    digest = hashlib.sha256("\n".join(row["key"] for row in own).encode()).hexdigest()[:12]
    return RetryTable(f"{FOLDER}/{record.id}-{digest}.parquet", len(own), sink.getvalue().to_pybytes())


def _source_table(own: list[dict[str, Any]], extra: pa.Table, config: IngestConfig) -> pa.Table:
    """Rows of a sidecar under the input's column names. An input's own column RETRY_OF gets out of the way of ours."""
    columns = {config.url_column: [row["url"] for row in own], config.caption_column: [row["caption"] for row in own]}
    table = pa.table(columns)
    names = free_names(names_in_table(extra.column_names, config), [RETRY_OF])
    double = next((name for name in table.column_names if name in names), None)
    if double is not None:
        raise InputError(
            f"--retry-failed: the rows have another column named {double}; set ingest.url_column and ingest.caption_column as "
            "in the run that ingested them"
        )
    for name, column in zip(names, extra.columns, strict=True):
        table = table.append_column(name, column)
    return table.append_column(RETRY_OF, pa.array([row["key"] for row in own]))


def names_in_table(stored: list[str], config: IngestConfig) -> list[str]:
    """Names that become these names in a sidecar: the input's own, as far as the sidecar's tell."""
    plain = [re.sub(r"_\d+$", "", name.removeprefix(PREFIX)) for name in stored]
    before = [short if short in COLUMNS.names else name for name, short in zip(stored, plain, strict=True)]
    taken = {config.url_column, config.caption_column}
    if free_names(before, COLUMNS.names) == stored and len({*before, *taken}) == len(before) + len(taken):
        return before
    return [short if name in taken else name for name, short in zip(stored, plain, strict=True)]

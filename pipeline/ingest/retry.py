"""Retries failures: writes rows that failed for chosen reasons to tables, which are then ingested like any other.

For each partition with such rows a parquet table is written into the data set, named by its content. It holds the source's
rows, with the failure's key in the column `retry_of`. A failure is retried once; if it fails again, the next retry finds the
new failure.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.dataset.columns import COLUMNS, PREFIX, ExtraRows, free_names, split_columns
from pipeline.dataset.manifest import Manifest, PartitionRecord, read_sidecar
from pipeline.storage.base import Storage

FOLDER = "retries"
RETRY_OF = "retry_of"
_OWN_KEY = re.compile(r"([0-9a-f]{16})-\d{6,}")
RETRY_TABLE = re.compile(rf"/{FOLDER}/[0-9a-f]{{16}}-[0-9a-f]{{12}}\.parquet$")


def write_retry_tables(storage: Storage, manifest: Manifest, reasons: Sequence[str], config: IngestConfig) -> int:
    """Writes tables of all failures with these reasons that were not retried yet. Returns their number of rows."""
    done = _retried_keys(storage, manifest)
    tables = {record.id: record.input_path for record in manifest.partitions}
    rows = 0
    for record in manifest.partitions:
        if any(reason in reasons for reason in record.counts) or _is_compact(record):
            for partition, failures in _failures(storage, record, reasons, done, tables).items():
                rows += _write_table(storage, partition, in_retries(tables[partition]), failures, config)
    return rows


def _is_compact(record: PartitionRecord) -> bool:
    """True for a partition whose rows are in another's shards, or whose shards have rows of others, after --materialize."""
    return sum(shard.num_rows for shard in record.shards) != record.num_rows


def _retried_keys(storage: Storage, manifest: Manifest) -> set[str]:
    """Keys of the failures that were retried, in every shard that may hold rows of a retry."""
    if not any(in_retries(record.input_path) for record in manifest.partitions):
        return set()
    done: set[str] = set()
    for record in manifest.partitions:
        for shard in record.shards if in_retries(record.input_path) or _is_compact(record) else ():
            table = read_sidecar(storage, shard, ["key"], [RETRY_OF])
            done |= set(filter(is_own_key, table[RETRY_OF].to_pylist())) if RETRY_OF in table.column_names else set()
    return done


def is_own_key(key: object) -> bool:
    """True for a key that ingestion gave, which no other row has."""
    return isinstance(key, str) and _OWN_KEY.fullmatch(key) is not None


def in_retries(table: str) -> bool:
    """True for a table that `write_retry_tables` wrote."""
    return RETRY_TABLE.search(table) is not None


def retried_partition(table: str) -> str:
    """Id of the partition whose rows a table of retries holds."""
    return table.rpartition("/")[2].partition("-")[0]


def _failures(
    storage: Storage, record: PartitionRecord, reasons: Sequence[str], done: Collection[str], known: Collection[str]
) -> dict[str, tuple[list[dict[str, Any]], ExtraRows]]:
    """Failures in a partition's shards (own columns, others) by the id of the partition whose rows they are, as keys tell."""
    found: dict[str, tuple[list[dict[str, Any]], ExtraRows]] = defaultdict(lambda: ([], ExtraRows()))
    for shard in record.shards:
        for row, others in split_columns(read_sidecar(storage, shard)):
            if row["reason"] in reasons and row["key"] not in done:
                partition = row["key"].rpartition("-")[0]
                own, extra = found[partition if partition in known else record.id]
                own.append(row)
                extra.add(others)
    return found


def _write_table(
    storage: Storage,
    partition: str,
    is_retry: bool,
    failures: tuple[list[dict[str, Any]], ExtraRows],
    config: IngestConfig,
) -> int:
    own, others = failures[0], failures[1].table()
    if RETRY_OF in others.column_names and (is_retry or others[RETRY_OF].null_count == len(own)):
        others = others.drop_columns([RETRY_OF])
    sink = pa.BufferOutputStream()
    pq.write_table(_source_table(own, others, config), sink, compression="zstd")
    digest = hashlib.sha256("\n".join(row["key"] for row in own).encode()).hexdigest()[:12]
    storage.write_if_absent(f"{FOLDER}/{partition}-{digest}.parquet", sink.getvalue().to_pybytes())
    return len(own)


def _source_table(own: list[dict[str, Any]], extra: pa.Table, config: IngestConfig) -> pa.Table:
    """Rows of a sidecar under the input's column names. An input's own column RETRY_OF gets out of the way of ours."""
    columns = {config.url_column: [row["url"] for row in own], config.caption_column: [row["caption"] for row in own]}
    table = pa.table(columns)
    names = free_names(_names_in_table(extra.column_names, config), [RETRY_OF])
    for name, column in zip(names, extra.columns, strict=True):
        table = table.append_column(name, column)
    return table.append_column(RETRY_OF, pa.array([row["key"] for row in own]))


def _names_in_table(stored: list[str], config: IngestConfig) -> list[str]:
    """Names that become these names in a sidecar: the input's own, as far as the sidecar's tell."""
    plain = [re.sub(r"_\d+$", "", name.removeprefix(PREFIX)) for name in stored]
    before = [short if short in COLUMNS.names else name for name, short in zip(stored, plain, strict=True)]
    taken = {config.url_column, config.caption_column}
    if free_names(before, COLUMNS.names) == stored and len({*before, *taken}) == len(before) + len(taken):
        return before
    return [short if name in taken else name for name, short in zip(stored, plain, strict=True)]

"""Retries failures: writes rows that failed for chosen reasons to tables, which are then ingested like any other.

For each partition with such rows a parquet table is written into the data set, named by its content. It holds the source's
rows, with the failure's key in the column `retry_of`. A failure is retried once; if it fails again, the next retry finds the
new failure.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.dataset.columns import COLUMNS, PREFIX, ExtraRows, free_names, split_columns
from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord, read_sidecar
from pipeline.storage.base import Storage

FOLDER = "retries"
RETRY_OF = "retry_of"
RETRY_TABLE = re.compile(rf"/{FOLDER}/[0-9a-f]{{16}}-[0-9a-f]{{12}}\.parquet$")


def write_retry_tables(storage: Storage, manifest: Manifest, reasons: Sequence[str], config: IngestConfig) -> int:
    """Writes tables of all failures with these reasons that were not retried yet. Returns their number of rows."""
    retries: dict[str, list[PartitionRecord]] = defaultdict(list)
    for record in manifest.partitions:
        if in_retries(record.input_path):
            retries[retried_partition(record.input_path)].append(record)
    rows = 0
    for record in manifest.partitions:
        if any(reason in reasons for reason in record.counts):
            rows += _write_table(storage, record, retries[record.id], reasons, config)
    return rows


def in_retries(table: str) -> bool:
    """True for a table that `write_retry_tables` wrote."""
    return RETRY_TABLE.search(table) is not None


def is_same_retry(one: str, other: str) -> bool:
    """True for the same table of retries, in a data set that may have been moved; its name says what it holds."""
    return one.rpartition("/")[2] == other.rpartition("/")[2] and in_retries(one) and in_retries(other)


def retried_partition(table: str) -> str:
    """Id of the partition whose rows a table of retries holds."""
    return table.rpartition("/")[2].partition("-")[0]


def _write_table(
    storage: Storage,
    record: PartitionRecord,
    retries: Iterable[PartitionRecord],
    reasons: Sequence[str],
    config: IngestConfig,
) -> int:
    done = {key for shard in _shards(retries) for key in read_sidecar(storage, shard, [RETRY_OF])[RETRY_OF].to_pylist()}
    own: list[dict[str, Any]] = []
    extra = ExtraRows()
    for shard in record.shards:
        for row, others in split_columns(read_sidecar(storage, shard)):
            if row["reason"] in reasons and row["key"] not in done:
                own.append(row)
                extra.add(others)
    if not own:
        return 0
    sink = pa.BufferOutputStream()
    others = extra.table()
    if in_retries(record.input_path):
        others = others.drop_columns([RETRY_OF])
    pq.write_table(_source_table(own, others, config), sink, compression="zstd")
    digest = hashlib.sha256("\n".join(row["key"] for row in own).encode()).hexdigest()[:12]
    storage.write_if_absent(f"{FOLDER}/{record.id}-{digest}.parquet", sink.getvalue().to_pybytes())
    return len(own)


def _shards(records: Iterable[PartitionRecord]) -> Iterator[ShardRecord]:
    for record in records:
        yield from record.shards


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

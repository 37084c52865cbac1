"""Retries failures: writes rows that failed for chosen reasons to tables, which are then ingested like any other.

For each partition with such rows a parquet table is written into the data set, named by its content. It holds the source's
rows, with the failure's key in the column `retry_of`. A failure is retried once; if it fails again, the next retry finds the
new failure.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, read_sidecar
from pipeline.dataset.shard import COLUMNS
from pipeline.storage.base import Storage

FOLDER = "retries"
RETRY_OF = "retry_of"


def write_retry_tables(storage: Storage, manifest: Manifest, reasons: Sequence[str], config: IngestConfig) -> int:
    """Writes tables of all failures with these reasons that were not retried yet. Returns their number of rows."""
    retries: dict[str, list[PartitionRecord]] = defaultdict(list)
    for record in manifest.partitions:
        if f"/{FOLDER}/" in record.input_path:
            retries[_retried_partition(record)].append(record)
    rows = 0
    for record in manifest.partitions:
        if any(reason in reasons for reason in record.counts):
            rows += _write_table(storage, record, retries[record.id], reasons, config)
    return rows


def _retried_partition(record: PartitionRecord) -> str:
    return record.input_path.rpartition("/")[2].partition("-")[0]


def _write_table(
    storage: Storage,
    record: PartitionRecord,
    retries: Iterable[PartitionRecord],
    reasons: Sequence[str],
    config: IngestConfig,
) -> int:
    done = {row[RETRY_OF] for retry in retries for row in _rows(storage, retry)}
    rows = [row for row in _rows(storage, record) if row["reason"] in reasons and row["key"] not in done]
    if not rows:
        return 0
    table = pa.Table.from_pylist([_source_row(row, config) for row in rows])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    digest = hashlib.sha256("\n".join(row["key"] for row in rows).encode()).hexdigest()[:12]
    storage.write_if_absent(f"{FOLDER}/{record.id}-{digest}.parquet", sink.getvalue().to_pybytes())
    return len(rows)


def _rows(storage: Storage, record: PartitionRecord) -> list[dict[str, Any]]:
    return [row for shard in record.shards for row in read_sidecar(storage, shard).to_pylist()]


def _source_row(row: dict[str, Any], config: IngestConfig) -> dict[str, Any]:
    """A sidecar's row under the input's column names."""
    own = set(COLUMNS.names)
    extra = {
        name.removeprefix("source_") if name.removeprefix("source_") in own else name: value
        for name, value in row.items()
        if name not in own and name != RETRY_OF
    }
    return {config.url_column: row["url"], config.caption_column: row["caption"]} | extra | {RETRY_OF: row["key"]}

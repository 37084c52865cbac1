"""Checks a data set against its manifest (`verify`), and removes objects that no version names (`clean`).

In: a storage. Out: problems by object, or the paths of removed objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.compute as pc

from pipeline.dataset.manifest import (
    Manifest,
    PartitionRecord,
    ShardRecord,
    list_versions,
    locate_tar,
    read_manifest,
)
from pipeline.ingest.plan import INPUTS
from pipeline.ingest.progress import Progress
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet

READ_BYTES = 8 << 20
READERS = 8
OWN_PREFIXES = ("shards/", "selections/", "partitions/", INPUTS)


@dataclass(frozen=True)
class Problem:
    """An object that differs from the manifest."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def verify(storage: Storage, manifest: Manifest) -> list[Problem]:
    """Reads every object that a version names, and compares sizes, hashes and counts with the manifest."""
    problems = []
    size = sum(shard.tar_size_bytes + shard.sidecar_size_bytes for shard in manifest.shards)
    with ThreadPoolExecutor(READERS) as readers, Progress(size, "B", "verify") as progress:
        for shard, found in readers.map(lambda shard: (shard, list(check_shard(storage, shard))), manifest.shards):
            problems += found
            progress.update(shard.tar_size_bytes + shard.sidecar_size_bytes)
    return problems + list(_check_counts(manifest))


def check_shard(storage: Storage, shard: ShardRecord) -> Iterator[Problem]:
    """Reads one shard's objects, and compares sizes, hashes and counts with the manifest."""
    if shard.tar_size_bytes:
        yield from _check_object(*locate_tar(storage, shard), shard.tar_size_bytes, shard.tar_sha256)
    if shard.selection is not None:
        yield from _check_object(storage, shard.selection.path, shard.selection.size_bytes, shard.selection.sha256)
    problems = list(_check_object(storage, shard.sidecar_path, shard.sidecar_size_bytes, shard.sidecar_sha256))
    yield from problems
    if problems:
        return
    status = read_parquet(storage.read(shard.sidecar_path), ["status"])["status"]
    successes = pc.sum(pc.equal(status, "success")).as_py() or 0
    if (len(status), successes) != (shard.num_rows, shard.tar_samples):
        stated = f"{shard.num_rows} rows and {shard.tar_samples} samples"
        yield Problem(shard.sidecar_path, f"has {len(status)} rows and {successes} samples; the manifest says {stated}")


def _check_object(storage: Storage, path: str, size_bytes: int, sha256: str) -> Iterator[Problem]:
    digest, read = hashlib.sha256(), 0
    try:
        while read <= size_bytes and (chunk := storage.read_range(path, read, min(READ_BYTES, size_bytes + 1 - read))):
            digest.update(chunk)
            read += len(chunk)
    except FileNotFoundError:
        yield Problem(path, "is missing")
        return
    if read != size_bytes:
        yield Problem(
            path, f"has {'more than ' * (read > size_bytes)}{min(read, size_bytes)} bytes; the manifest says {size_bytes}"
        )
    elif digest.hexdigest() != sha256:
        yield Problem(path, "its sha256 is not the manifest's")


def _check_counts(manifest: Manifest) -> Iterator[Problem]:
    """Compares totals of rows: compact shards hold the rows of several partitions."""
    for record in manifest.partitions:
        counted = sum(record.counts.values())
        if record.num_rows != counted:
            yield Problem(record.path, f"states {record.num_rows} rows, but {counted} by reason")
    rows = sum(shard.num_rows for shard in manifest.shards)
    if rows != manifest.num_rows:
        yield Problem(f"version {manifest.version}", f"has {manifest.num_rows} rows in partitions, but {rows} in shards")


def clean(storage: Storage, older_than_s: float) -> list[str]:
    """Removes orphans: objects of attempts that were killed, or that were not the first to finish. Returns their paths.

    Objects of a running job are safe: finished ones are named by a completion record, and others are young.

    Args:
        older_than_s: age from which an object that nothing names is an orphan.
    """
    manifests = [read_manifest(storage, version) for version in list_versions(storage)]
    committed = {record.id: record for manifest in manifests for record in manifest.partitions}
    named = {path for manifest in manifests for record in manifest.partitions for path in _objects_of(record)}
    finished = {item.path for item in storage.list("partitions/")}
    waiting = set()
    for path in finished:
        record = PartitionRecord.model_validate_json(storage.read(path))
        if record.id not in committed and not _comes_too_late(record, committed.values()):
            named |= _objects_of(record)
            waiting.add(path)
    before = datetime.now(UTC) - timedelta(seconds=older_than_s)
    removed = []
    for prefix in OWN_PREFIXES:
        for item in list(storage.list(prefix)):
            if item.modified < before and not _is_needed(item.path, named, waiting, committed):
                storage.delete(item.path)
                removed.append(item.path)
    return removed + list(storage.remove_unfinished(before))


def _is_needed(path: str, named: set[str], waiting: set[str], committed: dict[str, PartitionRecord]) -> bool:
    if path.startswith("partitions/"):
        return path in waiting or path.removeprefix("partitions/").removesuffix(".json") in committed
    if path.startswith(INPUTS):  # notes stay; rows go when their partition is committed
        return path.endswith(".json") or path.removeprefix(INPUTS).removesuffix(".parquet") not in committed
    return path in named


def _objects_of(record: PartitionRecord) -> set[str]:
    paths = {path for shard in record.shards for path in (shard.tar_path, shard.sidecar_path, shard.stats_path)}
    return paths | {shard.selection.path for shard in record.shards if shard.selection is not None}


def _comes_too_late(record: PartitionRecord, committed: Iterable[PartitionRecord]) -> bool:
    """True if a committed partition holds some of its rows, so that this one will never be committed."""
    stop = record.first_row + record.num_rows
    return any(
        other.input_path == record.input_path and other.first_row < stop and record.first_row < other.first_row + other.num_rows
        for other in committed
    )

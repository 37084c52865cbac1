"""Indexes WebDataset tars written by other tools (img2dataset, LAION, any): each is read once, and none is copied.

In: a tar's address. Out: a sidecar in the data set, with the offset of every member, and a partition record whose shard names
the tar's address. Training reads the tar there, by range, like our own.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IndexConfig
from pipeline.dataset.manifest import (
    Manifest,
    PartitionRecord,
    Record,
    ShardRecord,
    list_versions,
    read_manifest,
    short_hash,
)
from pipeline.dataset.purged_urls import read_purged
from pipeline.dataset.tar_members import Skipped, group_members
from pipeline.errors import InputError
from pipeline.storage.address import open_storage, real_address
from pipeline.storage.base import ObjectInfo, Storage
from pipeline.versions.tar_patterns import named_tars
from pipeline.versions.tar_rows import drop_purged, is_read, mark_repeated, mark_scattered, row_of, table_of
from pipeline.versions.whole_tar import HashedTar, open_whole

logger = logging.getLogger(__name__)

FINGERPRINT = "indexed"
"""Begins the options' fingerprint of indexed tars; index.caption_key follows. Earlier releases have not recorded the key."""
READERS = 8
"""Tars that are read at once to see whether they have changed."""
MOST_LINES = 20
"""Tars without a sample that are named one by one."""


class Example(Record):
    """Rows or members with one reason: their number, and the first of them with its message."""

    count: int
    first: str
    message: str = ""


class IndexedTar(Record):
    """The result of reading a tar.

    Attributes:
        reasons: rows that are no samples, by reason.
        skipped: members that belong to no row, by kind.
    """

    record: PartitionRecord
    reasons: dict[str, Example]
    skipped: dict[str, Example]


def plan_index(config: IndexConfig, manifest: Manifest | None) -> list[str]:
    """Addresses of the tars that the data set does not hold yet. Raises InputError if the input has no tars."""
    if not config.output:
        raise InputError("index.output: is empty; name the folder or the s3://bucket/prefix of the data set")
    held = {real_address(record.input_path): record for record in manifest.partitions} if manifest else {}
    tars = {tar: held.get(real_address(tar)) for tar in _list_tars(config)}
    prints = {tar: record.options_fingerprint for tar, record in tars.items() if record}
    other = next((tar for tar in prints if prints[tar] != _fingerprint(config)), None)
    if other is not None and prints[other] == FINGERPRINT:
        logger.warning(
            "index.caption_key=%s: changes nothing in tars that the data set holds already, such as %s; if they were indexed "
            "without it, index them into a new index.output",
            *(config.caption_key, other),
        )
    elif other is not None:
        raise InputError(
            f"index.caption_key={config.caption_key}: the data set holds {other} with index.caption_key="
            f"{prints[other].removeprefix(FINGERPRINT).lstrip()}; use the same key, or index into a new index.output"
        )
    again = [(tar, record.input_path) for tar, record in tars.items() if record and record.input_path != tar]
    if again:
        logger.warning(
            "skipped %d tars that the data set holds under another path, such as %s, held as %s", len(again), *again[0]
        )
    return [tar for tar, record in tars.items() if record is None]


def _fingerprint(config: IndexConfig) -> str:
    return f"{FINGERPRINT} {config.caption_key}" if config.caption_key else FINGERPRINT


def _list_tars(config: IndexConfig) -> list[str]:
    """Addresses of the input's tars, each once, without hidden ones and those of the data set itself."""
    tars = named_tars(config.input, f"{open_storage(config.output).uri}/shards/")
    real = {tar: real_address(tar) for tar in tars}
    first = {real[tar]: tar for tar in reversed(tars)} | {tar: tar for tar in tars if real[tar] == tar}
    twice = [tar for tar in tars if first[real[tar]] != tar]
    if twice:
        which = (len(twice), twice[0], first[real[twice[0]]])
        logger.warning("skipped %d links to tars that are there too, such as %s, the same file as %s", *which)
        tars = [tar for tar in tars if first[real[tar]] == tar]
    if not tars:
        raise InputError(f"index.input={config.input}: all its tars are hidden or in index.output; name other ones")
    return tars


def count_newest_samples(config: IndexConfig, storage: Storage) -> int:
    """Samples of those of the input's tars that were indexed last, when they were; other tars may have been indexed since."""
    tars = set(map(real_address, _list_tars(config)))
    versions = list_versions(storage)
    newer = read_manifest(storage, versions[-1]).partitions
    for version in reversed([0, *versions[:-1]]):
        older = read_manifest(storage, version).partitions if version else ()
        known = {record.id for record in older}
        added = [record for record in newer if record.id not in known and real_address(record.input_path) in tars]
        if added:
            return sum(record.counts.get("success", 0) for record in added)
        newer = older
    return 0


def find_replaced(config: IndexConfig, manifest: Manifest) -> list[str]:
    """Messages about tars of the data set that have other bytes now than when they were indexed.

    A tar can be added to and keep its size. So one of the same size is read again if its storage has another tag for it.
    """
    held = {real_address(shard.address): shard for shard in manifest.shards if shard.address}
    shards = {tar: held[real_address(tar)] for tar in _list_tars(config) if real_address(tar) in held}
    found = {tar: item for tar, item in _items(shards).items() if tar in shards}
    problems = {
        tar: f"has {item.size_bytes:,} bytes, but had {shards[tar].tar_size_bytes:,} when it was indexed"
        for tar, item in found.items()
        if item.size_bytes != shards[tar].tar_size_bytes
    }
    touched = [tar for tar, item in found.items() if tar not in problems and "" != shards[tar].etag != item.etag != ""]
    if touched:
        logger.warning("reading %d tars that may have changed since they were indexed, such as %s", len(touched), touched[0])
    with ThreadPoolExecutor(READERS) as readers:
        hashes = dict(zip(touched, readers.map(_sha256, touched), strict=True))
    problems |= {
        tar: "has as many bytes as when it was indexed, but others"
        for tar, sha256 in hashes.items()
        if sha256 not in ("", shards[tar].tar_sha256)
    }
    return [
        f"index.input={tar}: {problem}, and a data set's tars do not change; restore it, or index the tars into a new "
        "index.output"
        for tar, problem in sorted(problems.items())
    ]


def _sha256(tar: str) -> str:
    """The sha256 of a tar; empty if it is gone by now."""
    folder, _, name = tar.rpartition("/")
    stream = HashedTar(open_storage(folder), name)
    try:
        stream.read_rest()
    except FileNotFoundError:
        return ""
    return stream.sha256


def _items(tars: Iterable[str]) -> dict[str, ObjectInfo]:
    """Listed objects by address, from listings of the tars' folders."""
    items: dict[str, ObjectInfo] = {}
    listed: tuple[str, ...] = ()
    for folder in sorted({tar.rpartition("/")[0] for tar in tars}):
        if not folder.startswith(listed):
            storage = open_storage(folder)
            items |= {storage.address(item.path): item for item in storage.list("")}
            listed = (*listed, f"{folder}/")
    return items


def index_tar(address: str, config: IndexConfig) -> PartitionRecord:
    """Reads a tar once, and writes its sidecar into the data set.

    Raises:
        InputError: it is not a whole tar, or training cannot read ranges of it.
    """
    return read_tar(address, config).record


def read_tar(address: str, config: IndexConfig) -> IndexedTar:
    """`index_tar`, with what there is to say about the tar."""
    folder, _, name = address.rpartition("/")
    storage, skipped = open_storage(folder), Skipped()
    stream = HashedTar(storage, name)
    try:
        etag = storage.etag(name)  # before the tar is read: it may change meanwhile
        rows = read_rows(stream, address, config, skipped)
    except OSError as error:
        raise InputError(f"index.input={address}: cannot be read ({error}); restore it or remove it") from None
    storage = open_storage(config.output)
    drop_purged(rows, read_purged(storage))
    partition = short_hash([address, stream.size_bytes, stream.sha256])
    counts = Counter(row["reason"] for row in rows)
    shard = _put_sidecar(storage, table_of(rows, skipped), f"{partition}-000-{stream.sha256[:12]}")
    record = PartitionRecord(
        id=partition,
        input_path=address,
        first_row=0,
        num_rows=len(rows),
        rows_sha256=stream.sha256,
        options_fingerprint=_fingerprint(config),
        counts=dict(sorted(counts.items())),
        shards=(
            shard.model_copy(
                update={
                    "num_samples": counts["success"],
                    "tar_size_bytes": stream.size_bytes,
                    "tar_sha256": stream.sha256,
                    "address": address,
                    "etag": etag,
                }
            ),
        ),
    )
    return IndexedTar(record=record, reasons=_examples(rows), skipped=_skipped(skipped))


def read_rows(stream: HashedTar, address: str, config: IndexConfig, skipped: Skipped) -> list[dict[str, Any]]:
    """Reads the sidecar's rows from a tar. Raises InputError as `index_tar` does."""
    rows = []
    with open_whole(stream, address) as tar:
        for group in group_members(tar, is_read, skipped):
            rows.append(row_of(group, config, skipped))
            if group.number:
                mark_repeated(rows[-1])
    mark_scattered(rows)
    return rows


def _examples(rows: Sequence[dict[str, Any]]) -> dict[str, Example]:
    found: dict[str, Example] = {}
    for row in rows:
        reason = row["reason"]
        if reason in found:
            found[reason] = found[reason].model_copy(update={"count": found[reason].count + 1})
        elif reason != "success":
            found[reason] = Example(count=1, first=row["key"], message=row["error_message"])
    return found


def _skipped(skipped: Skipped) -> dict[str, Example]:
    return {kind: Example(count=count, first=skipped.first[kind]) for kind, count in sorted(skipped.counts.items())}


def _put_sidecar(storage: Storage, table: pa.Table, prefix: str) -> ShardRecord:
    with tempfile.TemporaryDirectory(prefix="rayclip-") as folder:
        file = Path(folder) / "sidecar.parquet"
        pq.write_table(table, file, compression="zstd")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shard = ShardRecord(
            name=f"{prefix}-{digest[:8]}",
            num_rows=len(table),
            num_samples=0,
            tar_size_bytes=0,
            tar_sha256="",
            sidecar_size_bytes=file.stat().st_size,
            sidecar_sha256=digest,
        )
        storage.write_file(shard.sidecar_path, file)
        return shard


def describe(done: Sequence[IndexedTar]) -> list[str]:
    """Lines about what did not become samples, by reason, and about tars without any sample."""
    lines = []
    for what, found in (("rows", [one.reasons for one in done]), ("members skipped", [one.skipped for one in done])):
        for kind in sorted({kind for kinds in found for kind in kinds}):
            count = sum(kinds[kind].count for kinds in found if kind in kinds)
            tar, first = next(
                (one.record.input_path, kinds[kind]) for one, kinds in zip(done, found, strict=True) if kind in kinds
            )
            message = f": {first.message}" if first.message else ""
            lines.append(f"{kind}: {count:,} {what}; the first is {first.first} in {tar}{message}")
    empty = [one.record.input_path for one in done if not one.record.shards[0].num_samples]
    lines += [f"WARNING: {tar} has no sample" for tar in empty[:MOST_LINES]]
    return [*lines, f"WARNING: {len(empty) - MOST_LINES:,} more tars have no sample"] if len(empty) > MOST_LINES else lines


def describe_copies(done: Sequence[IndexedTar], manifest: Manifest) -> list[str]:
    """Lines about tars whose bytes are those of another tar of the data set, so that it holds their samples more than once."""
    by_bytes: dict[str, list[str]] = {}
    for shard in manifest.shards:
        if shard.address and shard.num_samples:
            by_bytes.setdefault(shard.tar_sha256, []).append(shard.address)
    new = {one.record.input_path for one in done}
    copies = [tars for tars in by_bytes.values() if len(tars) > 1 and new.intersection(tars)]
    lines = [
        f"WARNING: {', '.join(tars[:3])}{', ...' if len(tars) > 3 else ''}: have the same bytes, so their samples are there "
        f"{len(tars)} times; if that is not meant: jobs/curate.py with curate.drop_duplicates=true"
        for tars in copies[:MOST_LINES]
    ]
    return [*lines, f"WARNING: {len(copies) - MOST_LINES:,} more such tars"] if len(copies) > MOST_LINES else lines

"""Rewrites shards with only the samples that a version holds: to compact them, or to delete samples.

Sidecar rows of failures are copied too, so that every row of the input is still there once, with its reason.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.dataset.columns import ExtraRow, split_columns
from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord, locate_tar, read_selection, read_sidecar
from pipeline.dataset.shard import ShardWriter, publish
from pipeline.storage.base import Storage

READ_BYTES = 8 << 20


def group_partitions(manifest: Manifest, shard_size_bytes: int) -> list[list[PartitionRecord]]:
    """Groups neighbouring partitions whose samples fill about one shard."""
    groups: list[list[PartitionRecord]] = []
    size = 0.0
    for partition in manifest.partitions:
        own = sum(shard.tar_size_bytes * shard.num_samples / max(1, shard.tar_samples) for shard in partition.shards)
        if not groups or size + own > shard_size_bytes:
            groups.append([])
            size = 0.0
        groups[-1].append(partition)
        size += own
    return groups


def rewrite(storage: Storage, shards: list[ShardRecord], name_prefix: str, removed: Collection[str] = ()) -> ShardRecord:
    """Writes one shard with the selected samples of several, and uploads it.

    Args:
        removed: keys and URLs of rows that are reduced to their key and a reason.
    """
    with tempfile.TemporaryDirectory(prefix="rayclip-") as temporary:
        folder = Path(temporary)
        writer = ShardWriter(name_prefix, "jpg", datetime.now(UTC), folder)
        for shard in shards:
            for record, members, extra in _rows(storage, shard, folder / "old.tar"):
                if record["key"] in removed or record["url"] in removed:
                    record, members, extra = _blank(record, "removed"), {}, None
                elif record["status"] == "success" and not members:
                    record = record | {"status": "dropped", "reason": "curated"} | _NO_PLACES
                writer.add_record(record, members, extra)
        return publish(writer, storage, folder)


_NO_PLACES = {f"{member}_{what}": None for member in ("jpg", "txt", "json") for what in ("offset", "size")}


def _blank(record: dict[str, Any], reason: str) -> dict[str, Any]:
    """A row with nothing but its key and a reason."""
    return dict.fromkeys(record) | {
        "key": record["key"],
        "url": "",
        "caption": "",
        "status": "dropped",
        "reason": reason,
    }


def _rows(
    storage: Storage, shard: ShardRecord, scratch: Path
) -> Iterator[tuple[dict[str, Any], dict[str, bytes], ExtraRow | None]]:
    """Yields (own columns, members by extension, other columns) in order; a sample that was not chosen has no members."""
    chosen = None if shard.selection is None else set(read_selection(storage, shard.selection).to_pylist())
    samples = iter_samples(storage, shard, scratch) if shard.tar_size_bytes else iter(())
    position = 0
    for record, extra in split_columns(read_sidecar(storage, shard)):
        members: dict[str, bytes] = {}
        if record["status"] == "success":
            found = next(found for key, found in samples if key == record["key"])
            if chosen is None or position in chosen:
                members = found
            position += 1
        yield record, members, extra


def iter_samples(storage: Storage, shard: ShardRecord, scratch: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, members by extension) of all samples in a tar, in its order."""
    tar_storage, path = locate_tar(storage, shard)
    with scratch.open("wb") as file:
        for start in range(0, shard.tar_size_bytes, READ_BYTES):
            file.write(tar_storage.read_range(path, start, READ_BYTES))
    with tarfile.open(scratch) as tar:
        files = ((*split_key(member.name), member) for member in tar if member.isfile())
        for key, group in groupby(files, key=lambda item: item[0]):
            yield key, {extension: member_content(tar, member) for _, extension, member in group}


def member_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Reads the data of a member that is a file."""
    file = tar.extractfile(member)
    assert file is not None  # it is a file
    return file.read()


def split_key(name: str) -> tuple[str, str]:
    """(key, extension) of a member, split as in webdataset: at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()

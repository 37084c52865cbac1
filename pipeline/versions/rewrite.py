"""Rewrites shards with only the samples that a version holds: to compact them, or to delete samples.

Sidecar rows of failures are copied too, so that every row of the input is still there once, with its reason.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.dataset.columns import ExtraRow, split_columns
from pipeline.dataset.manifest import (
    Manifest,
    ManifestError,
    PartitionRecord,
    ShardRecord,
    locate_tar,
    read_selection,
    read_sidecar,
)
from pipeline.dataset.shard import IMAGE_EXTENSIONS, ShardWriter, publish
from pipeline.dataset.tar_members import Group, group_members, open_tar
from pipeline.storage.base import Storage
from pipeline.versions.whole_tar import READ_BYTES


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
    groups = _iter_groups(storage, shard, scratch) if shard.tar_size_bytes else iter(())
    position = 0
    for record, extra in split_columns(read_sidecar(storage, shard)):
        members: dict[str, bytes] = {}
        if record["status"] != "success":  # an index of an earlier version has the places of members for these too
            record |= _NO_PLACES
        if record["status"] == "success":
            group = next((group for group in groups if _is_at(record, group)), None)
            if group is None:
                address = shard.address or storage.address(shard.tar_path)
                raise ManifestError(
                    f"{address}: sample {record['key']} is not where its sidecar says; the tar was changed, restore it"
                )
            if chosen is None or position in chosen:
                members = _members(record, group)
            position += 1
        yield record, members, extra


def _is_at(record: dict[str, Any], group: Group) -> bool:
    """Returns whether a group holds the image of a sidecar's row."""
    return record["key"] == group.key and any(member.offset == record["jpg_offset"] for member in group.members.values())


def _members(record: dict[str, Any], group: Group) -> dict[str, bytes]:
    """The members of a sample to write: of several images the one in the sidecar, and as txt the caption in the sidecar."""
    found = {extension: member.content for extension, member in group.members.items() if member.content is not None}
    images = [extension for extension in IMAGE_EXTENSIONS if extension in found]
    if len(images) > 1:  # an index of an earlier version may have the place of one and the sha256 of another
        right = [name for name in images if hashlib.sha256(found[name]).hexdigest() == record["sha256"]]
        right = right or [name for name in images if group.members[name].offset == record["jpg_offset"]]
        found = {extension: content for extension, content in found.items() if extension in right or extension not in images}
    first = record["caption"] if isinstance(record["caption"], str) else record["caption"][0]
    if "txt" in found and record["txt_offset"] != group.members["txt"].offset and found["txt"] != first.encode():
        found |= {"source.txt": found["txt"], "txt": first.encode()}  # the caption comes from elsewhere
    return found


def iter_samples(storage: Storage, shard: ShardRecord, scratch: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, members by extension) of all samples in a tar, in its order."""
    for group in _iter_groups(storage, shard, scratch):
        yield group.key, {extension: member.content or b"" for extension, member in group.members.items()}


def _iter_groups(storage: Storage, shard: ShardRecord, scratch: Path) -> Iterator[Group]:
    tar_storage, path = locate_tar(storage, shard)
    with scratch.open("wb") as file:
        for start in range(0, shard.tar_size_bytes, READ_BYTES):
            file.write(tar_storage.read_range(path, start, READ_BYTES))
    with scratch.open("rb") as whole, open_tar(whole) as tar:
        yield from group_members(tar, lambda *_: True)

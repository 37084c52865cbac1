"""The manifest: what a version of a data set is (docs/decisions/0001-manifest.md). The one contract with training/.

In: completion records of partitions. Out: version N+1, put only if nobody else has put it; and for readers the shards of a
version, in order, with their sidecars.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet

FOLDER = "manifests"


class ManifestError(InputError):
    """A data set or a version of it is not there or not readable. The message says: address: the rule; what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Selection(_Record):
    """Which of a tar's samples a version holds, where it does not hold all of them.

    Attributes:
        name: of the parquet file that holds the column `position`: places among the tar's samples, ascending.
        tar_samples: samples in the tar.
        drops: samples that are left out, by reason.
    """

    name: str
    size_bytes: int
    sha256: str
    tar_samples: int
    drops: dict[str, int]

    @property
    def path(self) -> str:
        return f"selections/{self.name}.parquet"


class ShardRecord(_Record):
    """One tar and its sidecar.

    Attributes:
        num_rows: of the sidecar.
        num_samples: that a reader of this version sees: all of the tar's, or those of the selection.
        address: of a tar that lies elsewhere and was indexed where it is; "" for `shards/{name}.tar`.
    """

    name: str
    num_rows: int
    num_samples: int
    tar_size_bytes: int
    tar_sha256: str
    sidecar_size_bytes: int
    sidecar_sha256: str
    selection: Selection | None = None
    address: str = ""

    @property
    def tar_samples(self) -> int:
        """Samples in the tar, chosen or not."""
        return self.num_samples if self.selection is None else self.selection.tar_samples

    @property
    def tar_path(self) -> str:
        return f"shards/{self.name}.tar"

    @property
    def sidecar_path(self) -> str:
        return f"shards/{self.name}.parquet"

    @property
    def stats_path(self) -> str:
        return f"shards/{self.name}_stats.json"


class PartitionRecord(_Record):
    """What became of a row range of one table; also the content of a completion record."""

    id: str
    input_path: str
    first_row: int
    num_rows: int
    rows_sha256: str
    options_fingerprint: str
    counts: dict[str, int]
    shards: tuple[ShardRecord, ...]

    @property
    def path(self) -> str:
        return partition_path(self.id)


def partition_path(partition: str) -> str:
    """Where a partition's completion record lies."""
    return f"partitions/{partition}.json"


class Manifest(_Record):
    """One version of a data set."""

    format: Literal["rayclip-manifest"] = "rayclip-manifest"
    format_version: Literal[1] = 1
    version: int
    created: datetime
    partitions: tuple[PartitionRecord, ...]

    @cached_property
    def shards(self) -> tuple[ShardRecord, ...]:
        """All shards, in the order that gives samples their index."""
        return tuple(shard for partition in self.partitions for shard in partition.shards)

    @cached_property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @cached_property
    def num_rows(self) -> int:
        return sum(partition.num_rows for partition in self.partitions)

    @cached_property
    def identity(self) -> str:
        """sha256 over the shards' names, counts and selections: equal where every sample has the same index."""
        digest = hashlib.sha256()
        for shard in self.shards:
            chosen = "" if shard.selection is None else f" {shard.selection.name}"
            digest.update(f"{shard.name} {shard.num_samples}{chosen}\n".encode())
        return digest.hexdigest()


def list_versions(storage: Storage) -> list[int]:
    """The versions of a data set, ascending; none where there is no data set."""
    names = (item.path.rpartition("/")[2] for item in storage.list(f"{FOLDER}/"))
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())


def read_manifest(storage: Storage, version: int | Literal["latest"] = "latest") -> Manifest:
    """A version of a data set.

    Raises:
        ManifestError: there is no data set, no such version, or the file is not a manifest.
    """
    versions = list_versions(storage)
    if not versions:
        raise ManifestError(f"{storage.uri}: there is no data set; make one with jobs/ingest.py ingest.output={storage.uri}")
    wanted = versions[-1] if version == "latest" else version
    if wanted not in versions:
        raise ManifestError(
            f"data.version={version}: {storage.uri} has versions {versions[0]} to {versions[-1]}, not this one; "
            "name one of them, or latest"
        )
    path = _path(wanted)
    try:
        manifest = Manifest.model_validate_json(storage.read(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ManifestError(
            f"{storage.address(path)}: not a manifest that this program reads ({place}: {first['msg']}); "
            "restore the file or name another version"
        ) from None
    if manifest.version != wanted:
        raise ManifestError(f"{storage.address(path)}: states version {manifest.version}; restore the file")
    return manifest


def commit(storage: Storage, records: Iterable[PartitionRecord]) -> Manifest:
    """Adds partitions in a new version, and returns it.

    Rows that the data set holds already are not added twice: of partitions that share rows of a table, the one that was
    committed first stays. When another run commits first, its version is read and this one goes on top of it. Without anything
    to add, the latest version is returned.
    """
    records = list(records)
    while True:
        versions = list_versions(storage)
        old = read_manifest(storage, versions[-1]) if versions else None
        held = old.partitions if old else ()
        new = _without_overlaps(held, records)
        if old is not None and not new:
            return old
        manifest = Manifest(
            version=(old.version if old else 0) + 1,
            created=datetime.now(UTC).replace(microsecond=0),
            partitions=_sorted([*held, *new]),
        )
        if storage.write_if_absent(_path(manifest.version), manifest.model_dump_json(indent=1).encode()):
            return manifest


def commit_choice(storage: Storage, base: Manifest, chosen: Iterable[PartitionRecord]) -> Manifest:
    """Puts a version in which partitions of `base` have other shards, and returns it.

    What another run has added since stays. Without a change the latest version is returned.

    Raises:
        ManifestError: another run has changed the same partitions.
    """
    replaced, before = {record.id: record for record in chosen}, {record.id: record for record in base.partitions}
    while True:
        latest = read_manifest(storage)
        if not replaced:
            return latest
        for record in latest.partitions:
            if record.id in replaced and record.shards != before[record.id].shards:
                raise ManifestError(
                    f"{storage.uri}: version {latest.version} has changed what was chosen from version {base.version}; "
                    "choose again, from the latest version"
                )
        manifest = Manifest(
            version=latest.version + 1,
            created=datetime.now(UTC).replace(microsecond=0),
            partitions=tuple(replaced[record.id] if record.id in replaced else record for record in latest.partitions),
        )
        if storage.write_if_absent(_path(manifest.version), manifest.model_dump_json(indent=1).encode()):
            return manifest


def _without_overlaps(held: Iterable[PartitionRecord], records: list[PartitionRecord]) -> list[PartitionRecord]:
    """The records whose rows neither `held` nor a record before them has."""
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for record in held:
        insort(ranges[record.input_path], (record.first_row, record.first_row + record.num_rows))
    new = []
    for record in records:
        taken, stop = ranges[record.input_path], record.first_row + record.num_rows
        place = bisect(taken, (record.first_row, stop))
        before = taken[place - 1][1] if place else 0
        after = taken[place][0] if place < len(taken) else stop
        if before <= record.first_row and stop <= after:
            taken.insert(place, (record.first_row, stop))
            new.append(record)
    return new


def read_sidecar(storage: Storage, shard: ShardRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's sidecar, or some of its columns; failures are rows too.

    Raises:
        ManifestError: the sidecar is missing or is not the one that the manifest names.
    """
    data = _read_checked(storage, shard.sidecar_path, shard.sidecar_sha256, "sidecar")
    return read_parquet(data, columns)


def locate_tar(storage: Storage, shard: ShardRecord) -> tuple[Storage, str]:
    """(storage, path) of a shard's tar: in the data set, or where it was indexed."""
    if not shard.address:
        return storage, shard.tar_path
    folder, _, name = shard.address.rpartition("/")
    return _storage_at(folder), name


@lru_cache(maxsize=1024)
def _storage_at(uri: str) -> Storage:
    return open_storage(uri)


def read_samples(storage: Storage, shard: ShardRecord, columns: Sequence[str]) -> pa.Table:
    """The sidecar's rows of the samples that this version holds, in their order. Raises ManifestError."""
    table = read_sidecar(storage, shard, [*dict.fromkeys([*columns, "status"])])
    table = table.filter(pc.equal(table["status"], "success")).select(list(columns))
    if table.num_rows != shard.tar_samples:
        raise ManifestError(
            f"{storage.address(shard.sidecar_path)}: holds {table.num_rows} samples, and the manifest says "
            f"{shard.tar_samples}; restore the sidecar"
        )
    return table if shard.selection is None else table.take(read_selection(storage, shard.selection))


def read_selection(storage: Storage, selection: Selection) -> pa.Array:
    """Places among the tar's samples, int32, ascending. Raises ManifestError."""
    data = _read_checked(storage, selection.path, selection.sha256, "selection")
    return read_parquet(data)["position"].combine_chunks()


def _read_checked(storage: Storage, path: str, sha256: str, kind: str) -> bytes:
    address = storage.address(path)
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise ManifestError(f"{address}: the manifest names this {kind} and it is gone; restore it") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ManifestError(f"{address}: its sha256 is not the manifest's; the {kind} was changed, restore it")
    return data


def short_hash(content: object) -> str:
    """16 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _sorted(partitions: Iterable[PartitionRecord]) -> tuple[PartitionRecord, ...]:
    return tuple(sorted(partitions, key=lambda record: (record.input_path, record.first_row, record.id)))


def _path(version: int) -> str:
    return f"{FOLDER}/{version:08d}.json"

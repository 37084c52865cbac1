"""The manifest: what a version of a data set is (docs/decisions/0001-manifest.md). The one contract with training/.

In: completion records of partitions. Out: version N+1, put only if nobody else has put it; and for readers the shards of a
version, in order, with their sidecars.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.storage import Storage
from pipeline.types import InputError

FOLDER = "manifests"


class ManifestError(InputError):
    """A data set or a version of it is not there or not readable. The message says: address: the rule; what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardRecord(_Record):
    """One tar and its sidecar."""

    name: str
    num_rows: int
    num_samples: int
    tar_size_bytes: int
    tar_sha256: str
    sidecar_size_bytes: int
    sidecar_sha256: str

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
        """sha256 over the shards' names and counts: equal where every sample has the same index."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name} {shard.num_samples}\n".encode())
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
    address = storage.address(shard.sidecar_path)
    try:
        data = storage.read(shard.sidecar_path)
    except FileNotFoundError:
        raise ManifestError(f"{address}: the manifest names this sidecar and it is gone; restore it") from None
    if hashlib.sha256(data).hexdigest() != shard.sidecar_sha256:
        raise ManifestError(f"{address}: its sha256 is not the manifest's; the sidecar was changed, restore it")
    return pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))


def _sorted(partitions: Iterable[PartitionRecord]) -> tuple[PartitionRecord, ...]:
    return tuple(sorted(partitions, key=lambda record: (record.input_path, record.first_row, record.id)))


def _path(version: int) -> str:
    return f"{FOLDER}/{version:08d}.json"

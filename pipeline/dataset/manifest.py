"""The manifest: the definition of a data set's version (docs/decisions/0001-manifest.md), and the one contract with training/.

In: completion records of partitions. Out: version N+1, written only if no other run has written it; and, for readers, the
shards of a version, in order, with their sidecars.
"""

from __future__ import annotations

import hashlib
import json
import time
from bisect import bisect, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.dataset.columns import take_rows
from pipeline.errors import InputError, StorageAwayError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.parquet import parquet_columns, read_parquet

FOLDER = "manifests"
UNLISTED_ATTEMPTS, UNLISTED_PAUSE_S = 8, 0.05
TARS, TABLES = (".tar",), (".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp")
MOST_LISTED = 1000
"""Files that are looked at to say what lies at an address."""


class ManifestError(InputError):
    """A data set, or one of its versions, is missing or unreadable. The message says: address: the rule; what to do."""


class Record(BaseModel):
    """Part of a stored JSON file: frozen, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Selection(Record):
    """The subset of a tar's samples that a version holds.

    Attributes:
        name: stem of the parquet file with the column `position`: indices among the tar's samples, ascending.
        tar_samples: number of samples in the tar.
        drops: number of samples that were dropped, by reason.
    """

    name: str
    size_bytes: int
    sha256: str
    tar_samples: int
    drops: dict[str, int]

    @property
    def path(self) -> str:
        return selection_path(self.name)


def selection_path(name: str) -> str:
    """Path of a selection's positions."""
    return f"selections/{name}.parquet"


class ShardRecord(Record):
    """One tar and its sidecar.

    Attributes:
        num_rows: rows of the sidecar.
        num_samples: samples that a reader of this version sees: the selection's, or all of the tar's.
        address: address of a tar that was indexed in place, outside the data set; "" for `shards/{name}.tar`.
        etag: `Storage.etag` of such a tar before it was indexed; "" if an earlier release did that, and not written then.
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
    etag: str = Field("", exclude_if=lambda etag: not etag)

    @property
    def tar_samples(self) -> int:
        """Number of samples in the tar, selected or not."""
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


class PartitionRecord(Record):
    """The result of ingesting a row range of one table; also the content of a completion record.

    Attributes:
        text_reader: version of the reader whose rows of a text table were counted and hashed; "" for the first one and for
            parquet, and not written then.
    """

    id: str
    input_path: str
    first_row: int
    num_rows: int
    rows_sha256: str
    options_fingerprint: str
    counts: dict[str, int]
    shards: tuple[ShardRecord, ...]
    text_reader: str = Field("", exclude_if=lambda version: not version)

    @property
    def path(self) -> str:
        return partition_path(self.id)


def partition_path(partition: str) -> str:
    """Path of a partition's completion record."""
    return f"partitions/{partition}.json"


class Manifest(Record):
    """One version of a data set."""

    format: Literal["rayclip-manifest"] = "rayclip-manifest"
    format_version: Literal[1] = 1
    version: int
    created: datetime
    partitions: tuple[PartitionRecord, ...]

    @cached_property
    def shards(self) -> tuple[ShardRecord, ...]:
        """All shards, in the order that defines the samples' indices."""
        return tuple(shard for partition in self.partitions for shard in partition.shards)

    @cached_property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @cached_property
    def num_rows(self) -> int:
        return sum(partition.num_rows for partition in self.partitions)

    @cached_property
    def identity(self) -> str:
        """sha256 over the shards' names, counts and selections: equal if every sample has the same index."""
        digest = hashlib.sha256()
        for shard in self.shards:
            chosen = "" if shard.selection is None else f" {shard.selection.name}"
            digest.update(f"{shard.name} {shard.num_samples}{chosen}\n".encode())
        return digest.hexdigest()


def list_versions(storage: Storage) -> list[int]:
    """The versions of a data set, ascending; empty if there is no data set."""
    names = (item.path.rpartition("/")[2] for item in storage.list(f"{FOLDER}/"))
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())


def read_manifest(storage: Storage, version: int | Literal["latest"] = "latest") -> Manifest:
    """Reads a version of a data set.

    Raises:
        ManifestError: there is no data set, no such version, or the file is not a manifest.
    """
    versions = list_versions(storage)
    if not versions:
        raise ManifestError(f"{storage.uri}: there is no data set; {how_to_make_one(storage)}")
    wanted = versions[-1] if version == "latest" else version
    if wanted not in versions:
        raise ManifestError(
            f"data.version={version}: {storage.uri} has versions {versions[0]} to {versions[-1]}, not this one; "
            "use one of them, or latest"
        )
    path = _path(wanted)
    try:
        manifest = Manifest.model_validate_json(storage.read(path))
    except ValidationError as error:
        raise ManifestError(
            f"{storage.address(path)}: is not a manifest that this program can read ({first_problem(error)}); "
            "restore the file or use another version"
        ) from None
    if manifest.version != wanted:
        raise ManifestError(f"{storage.address(path)}: says that it is version {manifest.version}; restore the file")
    return manifest


def how_to_make_one(storage: Storage) -> str:
    """The command that makes a data set of what lies at an address: of tars, tables or images, or of nothing yet."""
    uri = storage.uri
    place = storage.local_path("")
    is_file = place is not None and place.is_file()
    names = [uri] if is_file or "{" in uri or "::" in uri else [item.path for item in islice(storage.list(""), MOST_LISTED)]
    if any(name.lower().endswith(TARS) for name in names):
        return f"these are tars: make one with jobs/index.py index.input='{uri}' index.output=DATA, and name DATA here"
    if any(name.lower().endswith(TABLES) for name in names):
        return f"these are tables: make one with jobs/ingest.py ingest.input='{uri}' ingest.output=DATA, and name DATA here"
    if any(name.lower().endswith(IMAGES) for name in names):
        keys = f"ingest.input='{uri}' ingest.captions_from=txt ingest.output=DATA"
        return (
            f"these are images: make one with jobs/ingest.py {keys} (docs/pictures.md has other captions), and name DATA here"
        )
    return f"make one with jobs/ingest.py ingest.input=TABLE ingest.output={uri}"


def first_problem(error: ValidationError) -> str:
    """The first problem of a stored file, as `field.path: message`."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def commit(storage: Storage, records: Iterable[PartitionRecord]) -> Manifest:
    """Adds partitions in a new version and returns it; without anything to add, returns the latest version.

    Rows that the data set already holds are not added twice: of partitions that share rows of a table, the one that was
    committed first stays.
    """
    records = list(records)

    def add(latest: Manifest | None) -> tuple[PartitionRecord, ...] | None:
        held = latest.partitions if latest else ()
        new = _without_overlaps(held, records)
        return _sorted([*held, *new]) if new or latest is None else None

    return _commit_next(storage, add)


def commit_choice(storage: Storage, base: Manifest, chosen: Iterable[PartitionRecord]) -> Manifest:
    """Replaces partitions of `base` in a new version and returns it; without a change, returns the latest version.

    Partitions that another run has added since stay.

    Raises:
        ManifestError: another run has changed the same partitions.
    """
    replaced, before = {record.id: record for record in chosen}, {record.id: record for record in base.partitions}

    def replace(latest: Manifest | None) -> tuple[PartitionRecord, ...] | None:
        latest = latest or read_manifest(storage)  # raises the error for a data set that is not there
        for record in latest.partitions:
            if record.id in replaced and record.shards != before[record.id].shards:
                raise ManifestError(
                    f"{storage.uri}: version {latest.version} has changed partitions that were chosen from version "
                    f"{base.version}; choose again, from the latest version"
                )
        partitions = tuple(replaced[record.id] if record.id in replaced else record for record in latest.partitions)
        return partitions if replaced else None

    return _commit_next(storage, replace)


def _commit_next(storage: Storage, change: Callable[[Manifest | None], tuple[PartitionRecord, ...] | None]) -> Manifest:
    """Writes the version after the latest one; if another run writes that version first, starts over from theirs.

    Args:
        change: takes the latest version, or None if there is none, and returns the partitions of the next; None: no change.

    Raises:
        StorageAwayError: the storage refuses a version because it exists, but does not list it.
    """
    refused, attempts = 0, 0
    while attempts < UNLISTED_ATTEMPTS:
        versions = list_versions(storage)
        latest = read_manifest(storage, versions[-1]) if versions else None
        partitions = change(latest)
        if partitions is None:
            assert latest is not None  # a data set without versions always changes
            return latest
        manifest = Manifest(
            version=(latest.version if latest else 0) + 1,
            created=datetime.now(UTC).replace(microsecond=0),
            partitions=partitions,
        )
        if storage.write_if_absent(_path(manifest.version), manifest.model_dump_json(indent=1).encode()):
            return manifest
        attempts = attempts + 1 if manifest.version == refused else 0
        refused = manifest.version
        time.sleep(UNLISTED_PAUSE_S * 2**attempts if attempts else 0)
    raise StorageAwayError(
        f"{storage.address(_path(refused))}: is there, says {storage.store}, but is not listed; try again, or use a store "
        "whose listings are current"
    )


def _without_overlaps(held: Iterable[PartitionRecord], records: list[PartitionRecord]) -> list[PartitionRecord]:
    """The records that share no rows with `held` or with a record before them."""
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


def read_sidecar(
    storage: Storage, shard: ShardRecord, columns: Sequence[str] | None = None, if_there: Sequence[str] = ()
) -> pa.Table:
    """Reads a shard's sidecar, or some of its columns; failed rows are included.

    Args:
        if_there: more columns, of which a sidecar may lack some.

    Raises:
        ManifestError: the sidecar is missing, or its sha256 is not the one in the manifest.
    """
    data = _read_checked(storage, shard.sidecar_path, shard.sidecar_sha256, "sidecar")
    if columns is not None and if_there:
        held = set(parquet_columns(data))
        columns = [*dict.fromkeys([*columns, *(name for name in if_there if name in held)])]
    return read_parquet(data, columns)


def locate_tar(storage: Storage, shard: ShardRecord) -> tuple[Storage, str]:
    """(storage, path) of a shard's tar: in the data set, or in the place where it was indexed."""
    if not shard.address:
        return storage, shard.tar_path
    folder, _, name = shard.address.rpartition("/")
    return _storage_at(folder), name


@lru_cache(maxsize=1024)
def _storage_at(uri: str) -> Storage:
    return open_storage(uri)


def read_samples(storage: Storage, shard: ShardRecord, columns: Sequence[str], if_there: Sequence[str] = ()) -> pa.Table:
    """Reads the sidecar's rows of the samples that this version holds, in order. Raises ManifestError.

    Args:
        if_there: more columns, of which a sidecar may lack some.
    """
    table = read_sidecar(storage, shard, [*dict.fromkeys([*columns, "status"])], if_there)
    rows = pc.indices_nonzero(pc.equal(table["status"], "success"))
    if len(rows) != shard.tar_samples:
        raise ManifestError(
            f"{storage.address(shard.sidecar_path)}: holds {len(rows)} samples, but the manifest says "
            f"{shard.tar_samples}; restore the sidecar"
        )
    chosen = rows if shard.selection is None else rows.take(read_selection(storage, shard.selection))
    found = [name for name in if_there if name in table.column_names]
    return take_rows(table.select([*dict.fromkeys([*columns, *found])]), chosen)


def read_selection(storage: Storage, selection: Selection) -> pa.Array:
    """Reads indices among the tar's samples, int32, ascending. Raises ManifestError."""
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
    """16 hex digits of the sha256 over a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _sorted(partitions: Iterable[PartitionRecord]) -> tuple[PartitionRecord, ...]:
    return tuple(sorted(partitions, key=lambda record: (record.input_path, record.first_row, record.id)))


def _path(version: int) -> str:
    return f"{FOLDER}/{version:08d}.json"

"""Takes samples down: finds the versions and runs that used them, and purges their bytes.

A published manifest is never edited: a version that names purged objects stays as a record, but can no longer be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.json_values import is_bytes, is_text
from pipeline.dataset.manifest import (
    Manifest,
    ShardRecord,
    commit_choice,
    list_versions,
    read_manifest,
    read_samples,
    read_sidecar,
)
from pipeline.errors import InputError
from pipeline.ingest.plan import INPUTS
from pipeline.ingest.retry import FOLDER
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet
from pipeline.versions.curation import Rules
from pipeline.versions.rewrite import rewrite


@dataclass(frozen=True)
class Holders:
    """Versions and shards that hold some of the samples.

    Attributes:
        versions: versions in which a reader saw one of the samples.
        shards: names of the shards whose objects hold one of their rows, seen by readers or not.
        found: the keys and URLs that name a row of a shard, or one that waits to be fetched.
    """

    versions: list[int]
    shards: frozenset[str]
    found: frozenset[str] = frozenset()


def find_holders(storage: Storage, rules: Rules) -> Holders:
    """Searches the sidecars of all versions, each once."""
    removed = pa.array(sorted(rules.removed), pa.string())
    positions: dict[str, set[int]] = {}
    found: set[str] = set()
    versions = []
    for version in list_versions(storage):
        held = False
        for shard in read_manifest(storage, version).shards:
            if shard.name not in positions:
                positions[shard.name], names = _positions(storage, shard, removed)
                found |= names
            held = held or (bool(positions[shard.name]) and _sees(storage, shard, removed))
        if held:
            versions.append(version)
    missing = rules.removed - found
    if missing:
        found |= _in_tables(storage, missing)
    return Holders(versions, frozenset(name for name, rows in positions.items() if rows), frozenset(found))


def _positions(storage: Storage, shard: ShardRecord, removed: pa.Array) -> tuple[set[int], set[str]]:
    """Indices of the sidecar's rows to remove, and the names that they have; empty if it has been deleted already."""
    if not storage.exists(shard.sidecar_path):
        return set(), set()
    table = read_sidecar(storage, shard, ["key", "url"])
    rows = pc.indices_nonzero(_named(table, removed))
    named = table.take(rows)
    return set(rows.to_pylist()), {*named["key"].to_pylist(), *named["url"].to_pylist()} & set(removed.to_pylist())


def keys_of_several(storage: Storage, rules: Rules) -> dict[str, list[str]]:
    """Keys to remove that name different samples, with the addresses of the tars that hold these.

    The keys of indexed tars may repeat. Samples with one URL, or with the same image, are one sample: versions share them.
    """
    removed = pa.array(sorted(rules.removed), pa.string())
    samples: dict[str, dict[str, str]] = {}
    shards = {shard.name: shard for version in list_versions(storage) for shard in read_manifest(storage, version).shards}
    for shard in shards.values():
        if not storage.exists(shard.sidecar_path):
            continue
        table = read_sidecar(storage, shard, ["key", "url", "status", "sha256"])
        table = table.filter(pc.and_(pc.is_in(table["key"], value_set=removed), pc.equal(table["status"], "success")))
        for row in table.to_pylist():
            samples.setdefault(row["key"], {}).setdefault(row["url"] or row["sha256"], _tar_of(storage, shard))
    return {key: list(dict.fromkeys(found.values())) for key, found in samples.items() if len(found) > 1}


def _tar_of(storage: Storage, shard: ShardRecord) -> str:
    return shard.address or storage.address(shard.tar_path)


def _in_tables(storage: Storage, names: frozenset[str]) -> set[str]:
    """The names that a table in the data set has, of rows that wait to be fetched or retried."""
    tables = [
        read_parquet(storage.read(item.path))
        for prefix in (INPUTS, f"{FOLDER}/")
        for item in storage.list(prefix)
        if item.path.endswith(".parquet")
    ]
    return {name for name in names if any(_names_any(table, frozenset([name])) for table in tables)}


def _sees(storage: Storage, shard: ShardRecord, removed: pa.Array) -> bool:
    return bool(pc.any(_named(read_samples(storage, shard, ["key", "url"]), removed)).as_py())


def _named(table: pa.Table, removed: pa.Array) -> pa.ChunkedArray:
    return pc.or_(pc.is_in(table["key"], value_set=removed), pc.is_in(table["url"], value_set=removed))


def purge(storage: Storage, rules: Rules, holders: Holders) -> Manifest:
    """Rewrites the latest version's shards that hold the samples, commits, and deletes all older objects that hold them.

    Raises:
        InputError: a tar that holds them was indexed in place, so that it cannot be rewritten here.
    """
    latest = read_manifest(storage)
    changed = []
    for partition in latest.partitions:
        if not any(shard.name in holders.shards for shard in partition.shards):
            continue
        shards = []
        for number, shard in enumerate(partition.shards):
            if shard.name not in holders.shards:
                shards.append(shard)
                continue
            if shard.address:
                raise InputError(
                    f"--purge: {shard.address} was indexed in place; remove the samples there and index it again, or copy it "
                    "into this data set first, with --materialize"
                )
            shards.append(rewrite(storage, [shard], f"{partition.id}-{number:03d}", rules.removed))
        changed.append(partition.model_copy(update={"shards": tuple(shards)}))
    manifest = commit_choice(storage, latest, changed)
    _delete_tables(storage, rules)
    kept = {shard.name for shard in manifest.shards}
    # Sidecars go last: by them, a takedown that was killed finds the rest when it is run again.
    for item in sorted(storage.list("shards/"), key=lambda item: (item.path.endswith(".parquet"), item.path)):
        name = item.path.removeprefix("shards/").removesuffix(".tar").removesuffix(".parquet").removesuffix("_stats.json")
        if name in holders.shards and name not in kept:
            storage.delete(item.path)
    return manifest


def _delete_tables(storage: Storage, rules: Rules) -> None:
    """Deletes tables in the data set, of rows that wait to be fetched or retried, that name one of the samples."""
    for prefix in (INPUTS, f"{FOLDER}/"):
        for item in list(storage.list(prefix)):
            if item.path.endswith(".parquet") and _names_any(read_parquet(storage.read(item.path)), rules.removed):
                storage.delete(item.path)


def _names_any(table: pa.Table, names: frozenset[str]) -> bool:
    """True if a column of text holds one of the keys or URLs, whatever the type of its text."""
    removed = {kind: pa.array(sorted(names)).cast(kind) for kind in (pa.large_string(), pa.large_binary())}
    for column in table.columns:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        wanted = pa.large_string() if is_text(kind) else pa.large_binary() if is_bytes(kind) else None
        if wanted is not None and pc.any(pc.is_in(column.cast(wanted), value_set=removed[wanted])).as_py():
            return True
    return False


def runs_on(runs_uri: str, data_uri: str, versions: list[int]) -> Iterator[tuple[str, int]]:
    """Yields (run, version) of the runs under a folder whose checkpoints name these versions of the data set."""
    storage = open_storage(runs_uri)
    found = set()
    for item in storage.list(""):
        if item.path.endswith("/checkpoint.json"):
            for one in json.loads(storage.read(item.path))["data_sets"]:
                if one["uri"] == data_uri and one["version"] in versions:
                    found.add((item.path.partition("/")[0], one["version"]))
    yield from sorted(found)

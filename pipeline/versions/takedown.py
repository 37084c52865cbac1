"""Takes samples down: finds the versions and runs that used them, and purges their bytes.

A published manifest is never edited: a version that names purged objects stays as a record, but can no longer be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.json_values import is_bytes, is_text
from pipeline.dataset.manifest import (
    Manifest,
    ShardRecord,
    commit_choice,
    list_versions,
    locate_tar,
    read_manifest,
    read_samples,
    read_sidecar,
)
from pipeline.dataset.purged_urls import digest_of, read_purged, record_purge
from pipeline.errors import InputError
from pipeline.ingest.image_folder import FOLDER as LISTINGS
from pipeline.ingest.image_folder import blank_listed
from pipeline.ingest.plan import INPUTS
from pipeline.ingest.retry import FOLDER, RETRY_OF, is_own_key
from pipeline.storage.address import open_storage, real_address
from pipeline.storage.base import Storage
from pipeline.storage.parquet import parquet_columns, read_parquet
from pipeline.versions.curation import REMOVED, Rules
from pipeline.versions.rewrite import rewrite


@dataclass(frozen=True)
class Holders:
    """Versions and shards that hold some of the samples.

    Attributes:
        versions: versions in which a reader saw one of the samples.
        shards: names of the shards whose objects hold one of their rows, seen by readers or not.
        found: the keys and URLs that name a row of a shard, one that waits to be fetched, or one that was purged before.
        waiting: those of them that name no sample but rows that failed, or wait: a retry or their table may fetch them.
        urls: the URLs of their rows.
        uncommitted: those of `shards` that no version names, of an ingestion that is in progress or was killed.
        unsearched: tars without a sidecar, likewise.
        in_place: addresses of tars that were indexed in place and hold some.
    """

    versions: list[int]
    shards: frozenset[str]
    found: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    uncommitted: frozenset[str] = frozenset()
    unsearched: frozenset[str] = frozenset()
    in_place: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Match:
    """Rows of a sidecar to remove: the lines that name one, the lines that name a sample, and the rows' URLs."""

    names: frozenset[str] = frozenset()
    samples: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()


def find_holders(storage: Storage, rules: Rules) -> Holders:
    """Searches all sidecars, each once, also those that no version names (yet)."""
    removed = pa.array(sorted(rules.removed | rules.retries), pa.string())
    named = {shard.name: shard for version in list_versions(storage) for shard in read_manifest(storage, version).shards}
    stored = {suffix: _stored(storage, suffix) for suffix in (".parquet", ".tar")}
    matches = {name: _match(storage, name, removed) for name in sorted(stored[".parquet"])}
    matches = {name: match for name, match in matches.items() if match.names}
    versions = [
        version
        for version in list_versions(storage)
        if any(shard.name in matches and _sees(storage, shard, removed) for shard in read_manifest(storage, version).shards)
    ]
    found, samples, urls = (
        frozenset[str]().union(*(getattr(match, what) for match in matches.values())) for what in ("names", "samples", "urls")
    )
    missing = rules.removed - found
    in_tables = _in_tables(storage, missing) if missing else set[str]()
    purged = read_purged(storage)
    return Holders(
        versions=versions,
        shards=frozenset(matches),
        found=found | in_tables | {line for line in missing if digest_of(line) in purged},
        waiting=frozenset(
            line for line in rules.removed & (found | in_tables) - samples if not _has_sample(line, rules, samples)
        ),
        urls=urls,
        uncommitted=frozenset(matches) - named.keys(),
        unsearched=frozenset(stored[".tar"] - stored[".parquet"] - named.keys()),
        in_place=frozenset(shard.address for shard in named.values() if shard.name in matches and _is_in_place(storage, shard)),
    )


def _has_sample(key: str, rules: Rules, samples: frozenset[str]) -> bool:
    """True for the key of a failed row that has a sample under the key of a retry."""
    return is_own_key(key) and bool(rules.retries & samples)


def _is_in_place(storage: Storage, shard: ShardRecord) -> bool:
    """True for a tar that was indexed in place, and is still there."""
    if not shard.address:
        return False
    place, path = locate_tar(storage, shard)
    return place.exists(path)


def _stored(storage: Storage, suffix: str) -> set[str]:
    """Names of the shards that have an object with a suffix."""
    names = (item.path.removeprefix("shards/") for item in storage.list("shards/"))
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix)}


def with_retries(storage: Storage, rules: Rules) -> Rules:
    """The rules, with the keys of the same rows in other attempts: a failed row and its retries are one row of a table."""
    if not rules.removed or not any(storage.list(f"{FOLDER}/")):
        return rules
    same: dict[str, set[str]] = {}
    for name in _stored(storage, ".parquet"):
        data = storage.read(f"shards/{name}.parquet")
        if RETRY_OF in parquet_columns(data):
            for row in read_parquet(data, ["key", RETRY_OF]).to_pylist():
                if is_own_key(row[RETRY_OF]):
                    same.setdefault(row["key"], set()).add(row[RETRY_OF])
                    same.setdefault(row[RETRY_OF], set()).add(row["key"])
    reached, found = list(rules.removed), set(rules.removed)
    while reached:
        more = same.get(reached.pop(), set()) - found
        found |= more
        reached += more
    return replace(rules, retries=frozenset(found) - rules.removed)


def _match(storage: Storage, name: str, removed: pa.Array) -> _Match:
    try:
        table = read_parquet(storage.read(f"shards/{name}.parquet"), ["key", "url", "status", "reason"])
    except FileNotFoundError:  # deleted meanwhile
        return _Match()
    is_blank = pc.and_kleene(pc.equal(table["reason"], REMOVED), pc.equal(table["url"], ""))  # of an earlier purge
    table = table.filter(pc.and_not_kleene(_named(table, removed), is_blank))
    samples = table.filter(pc.equal(table["status"], "success"))
    lines = frozenset(removed.to_pylist())
    return _Match(lines & _names(table), lines & _names(samples), frozenset(table["url"].to_pylist()) - {None, ""})


def _names(table: pa.Table) -> set[str]:
    return {*table["key"].to_pylist(), *pc.utf8_trim_whitespace(table["url"]).to_pylist()}


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
        for prefix in (INPUTS, f"{FOLDER}/", f"{LISTINGS}/")
        for item in storage.list(prefix)
        if item.path.endswith(".parquet")
    ]
    return {name for name in names if any(_names_any(table, frozenset([name])) for table in tables)}


def _sees(storage: Storage, shard: ShardRecord, removed: pa.Array) -> bool:
    return bool(pc.any(_named(read_samples(storage, shard, ["key", "url"]), removed)).as_py())


def _named(table: pa.Table, removed: pa.Array) -> pa.ChunkedArray:
    """Rows that a line names; a URL may have white space around it in its table."""
    urls = pc.utf8_trim_whitespace(table["url"])
    return pc.or_(pc.is_in(table["key"], value_set=removed), pc.is_in(urls, value_set=removed))


def purge(storage: Storage, rules: Rules, holders: Holders) -> Manifest:
    """Rewrites the latest version's shards that hold the samples, commits, and deletes all older objects that hold them.

    The samples' URLs are listed first, so that no table brings them back (pipeline/dataset/purged_urls.py). Objects that no
    version names stay: an ingestion that is in progress may be about to commit them.

    Raises:
        InputError: a tar that holds them was indexed in place, so that it cannot be rewritten here.
    """
    latest = read_manifest(storage)
    in_place = next((shard.address for shard in latest.shards if shard.address and shard.name in holders.shards), None)
    if in_place is not None:
        raise InputError(
            f"--purge: {in_place} was indexed in place; remove the samples there and index it again, or copy it into this data "
            "set first, with --materialize"
        )
    record_purge(storage, (rules.removed & holders.found) | holders.urls)
    changed = []
    for partition in latest.partitions:
        if not any(shard.name in holders.shards for shard in partition.shards):
            continue
        shards = []
        for number, shard in enumerate(partition.shards):
            if shard.name not in holders.shards:
                shards.append(shard)
                continue
            shards.append(rewrite(storage, [shard], f"{partition.id}-{number:03d}", rules.removed | rules.retries))
        changed.append(partition.model_copy(update={"shards": tuple(shards)}))
    manifest = commit_choice(storage, latest, changed)
    _delete_tables(storage, rules.removed | rules.retries | holders.urls)
    kept = {shard.name for shard in manifest.shards}
    # Sidecars go last: by them, a takedown that was killed finds the rest when it is run again.
    for item in sorted(storage.list("shards/"), key=lambda item: (item.path.endswith(".parquet"), item.path)):
        name = item.path.removeprefix("shards/").removesuffix(".tar").removesuffix(".parquet").removesuffix("_stats.json")
        if name in holders.shards - holders.uncommitted and name not in kept:
            storage.delete(item.path)
    return manifest


def _delete_tables(storage: Storage, names: frozenset[str]) -> None:
    """Deletes tables in the data set, of rows that wait to be fetched or retried, that name one of the samples.

    In lists of images only the rows of these samples go: the others tell which images are there.
    """
    blank_listed(storage, names)
    for prefix in (INPUTS, f"{FOLDER}/"):
        for item in list(storage.list(prefix)):
            if item.path.endswith(".parquet") and _names_any(read_parquet(storage.read(item.path)), names):
                storage.delete(item.path)


def _names_any(table: pa.Table, names: frozenset[str]) -> bool:
    """True if a column of text holds one of the keys or URLs, whatever the type of its text."""
    removed = {kind: pa.array(sorted(names)).cast(kind) for kind in (pa.large_string(), pa.large_binary())}
    for column in table.columns:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        wanted = pa.large_string() if is_text(kind) else pa.large_binary() if is_bytes(kind) else None
        if wanted is None:
            continue
        values = column.cast(wanted)
        values = pc.utf8_trim_whitespace(values) if wanted == pa.large_string() else values
        if pc.any(pc.is_in(values, value_set=removed[wanted])).as_py():
            return True
    return False


def read_runs(runs_uri: str) -> dict[str, list[dict[str, Any]]]:
    """The data sets of each run under a folder, as its checkpoints name them.

    Raises:
        InputError: the folder holds no run with a checkpoint.
    """
    storage = open_storage(runs_uri)
    runs: dict[str, list[dict[str, Any]]] = {}
    for item in storage.list(""):
        if item.path.endswith("/checkpoint.json"):
            runs.setdefault(item.path.partition("/")[0], []).extend(json.loads(storage.read(item.path))["data_sets"])
    if not runs:
        raise InputError(f"--runs {runs_uri}: holds no run with a checkpoint; name the folder of run folders (run.dir)")
    return runs


def runs_on(runs: dict[str, list[dict[str, Any]]], data: Storage, versions: list[int]) -> Iterator[tuple[str, int]]:
    """Yields (run, version) of the runs on these versions of the data set, also if it had another address then."""
    identities = {read_manifest(data, version).identity: version for version in versions}
    found = set()
    for run_name, data_sets in runs.items():
        for one in data_sets:
            is_this = real_address(one["uri"]) == real_address(data.uri) and one["version"] in versions
            if is_this:
                found.add((run_name, one["version"]))
            elif "identity" in one and one["identity"] in identities:
                found.add((run_name, identities[one["identity"]]))
    yield from sorted(found)

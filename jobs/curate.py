"""Selects samples of a data set by rules and commits the selection as a new version, without touching the images.

    python jobs/curate.py curate.data=data/pairs curate.min_side_px=200 curate.max_aspect_ratio=3 curate.drop_duplicates=true
    python jobs/curate.py curate.data=data/pairs curate.exclude_hashes=evaluation_hashes.txt "curate.where=lang == 'en'"
    python jobs/curate.py curate.data=data/pairs curate.scores=data/features "curate.where=clip_score > 0.28"   (jobs/embed.py)
    python jobs/curate.py curate.data=data/pairs --materialize             rewrite the rest into compact shards
    python jobs/curate.py curate.data=data/pairs --remove urls.txt         remove samples: keys or URLs, one per line
    python jobs/curate.py curate.data=data/pairs --remove urls.txt --purge --runs runs     also rewrite their shards

A line of the list that names no sample gives exit code 3, and nothing is purged then; a key that different samples have, as of
tars that were indexed, gives it too, and nothing is removed. Drops are counted by reason. Earlier
versions stay unchanged, except those that held purged samples.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from jobs.cli.command_line import connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.worker_watch import WorkerWatch
from pipeline.config import CurateConfig
from pipeline.errors import InputError, NotMeantError
from pipeline.storage.url_credentials import without_userinfo
from training.ray_internals import KEY_VALUES, quieten_ray_data

MOST_LINES = 20
"""Lines of a takedown that matched nothing and are named one by one."""

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord
    from pipeline.storage.base import Storage
    from pipeline.versions.curation import Rules
    from pipeline.versions.takedown import Holders


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.dataset.manifest import commit_choice, read_manifest
    from pipeline.storage.address import open_storage
    from pipeline.storage.put_if_absent import ensure_put_if_absent
    from pipeline.versions.curation import check_rules, read_rules
    from pipeline.versions.takedown import read_runs, with_retries

    if not config.curate.data:
        raise InputError("curate.data: is empty; name the folder or the s3://bucket/prefix of a data set")
    if options.allow_missing and not options.purge:
        raise InputError("--allow-missing: allows --purge of lists with lines that name no sample; pass it with --purge")
    if options.allow_repeated and not options.remove:
        raise InputError("--allow-repeated: allows --remove of keys that several samples have; pass it with --remove")
    if options.runs and not options.remove:
        raise InputError("--runs: lists the runs that were trained on removed samples; pass it with --remove FILE")
    if options.purge and not options.remove:
        raise InputError("--purge: there is nothing to purge; list the samples with --remove FILE")
    no_rules = CurateConfig(data=config.curate.data, single_writer=config.curate.single_writer)
    if config.curate == no_rules and not (options.remove or options.materialize):
        raise InputError("curate: no rule is set; set keys of curate.* (see --help), or pass --materialize or --remove")
    storage = open_storage(config.curate.data)
    base = read_manifest(storage, config.curate.version)
    newest = read_manifest(storage)
    if base.partitions != newest.partitions:
        raise InputError(
            f"curate.version={base.version}: version {newest.version} has rows or selections that this one lacks, and they "
            "would stay in the new version as they are; omit the key to choose from the newest version"
        )
    rules = read_rules(config.curate, options.remove)
    runs = read_runs(options.runs) if options.runs else {}
    if rules.removed and not options.allow_repeated:
        _refuse_repeated(storage, rules, options)
    rules = with_retries(storage, rules)
    if rules.scores is not None:
        rules.scores.check(storage, base)
    rules = check_rules(storage, base, rules)  # refuses an invalid condition before Ray starts
    ensure_put_if_absent(storage, config.curate.single_writer, "curate.single_writer")
    connect_ray(config.cluster)
    manifest = commit_choice(storage, base, [] if rules.are_empty else _choose(storage, base, rules))
    print(_summary(base, manifest))
    if options.materialize:
        manifest = commit_choice(storage, manifest, _materialize(storage, manifest, config.ingest.shard_size_bytes))
        print(f"{storage.uri} version {manifest.version}: {manifest.num_samples:,} samples in {_tars(manifest)} compact shards")
    if options.remove:
        _take_down(storage, rules, options, runs)


def _choose(storage: Storage, base: Manifest, rules: Rules) -> list[PartitionRecord]:
    """The partitions that change, with the selections of their shards. Duplicates are grouped by hash prefix."""
    import ray

    from pipeline.ingest.attempts import Attempts
    from pipeline.ingest.progress import Waiting
    from pipeline.versions.curation import DUPLICATE, duplicates, judge, select

    shards, attempts = base.shards, Attempts(*KEY_VALUES)

    def verdicts_of(batch: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {"shard": [], "position": [], "sha256": [], "bucket": [], "verdict": []}
        for shard in batch["id"].tolist():
            with attempts.at(storage.address(shards[shard].sidecar_path)):
                verdicts, hashes = judge(storage, shards[shard], rules)
            rows["shard"] += [shard] * len(verdicts)
            rows["position"] += range(len(verdicts))
            rows["sha256"] += hashes
            rows["bucket"] += [digest[:2] for digest in hashes]
            rows["verdict"] += verdicts
        return rows

    def mark(group: pd.DataFrame) -> pd.DataFrame:
        kept = group[group["verdict"] == ""]
        again = duplicates(kept, "sha256", ("shard", "position"))
        group.loc[again.index[again.astype(bool)], "verdict"] = DUPLICATE
        return group

    def selected(group: pd.DataFrame) -> dict[str, list[Any]]:
        shard = int(group["shard"].iloc[0])
        record = select(storage, shards[shard], group.sort_values("position")["verdict"].tolist())
        return {"shard": [shard], "record": [record.model_dump_json()]}

    quieten_ray_data()
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()  # the only progress that is shown here
    stream = ray.data.range(len(shards), override_num_blocks=max(1, min(len(shards), 1000))).map_batches(verdicts_of)
    if rules.config.drop_duplicates:
        stream = stream.groupby("bucket").map_groups(mark, batch_format="pandas")
    chosen = stream.groupby("shard").map_groups(selected, batch_format="pandas")
    with Waiting("curate", WorkerWatch()):
        return _replace_shards(base, {row["shard"]: row["record"] for row in chosen.iter_rows()})


def _replace_shards(base: Manifest, records: dict[int, str]) -> list[PartitionRecord]:
    from pipeline.dataset.manifest import ShardRecord

    number, changed = 0, []
    for partition in base.partitions:
        shards = []
        for shard in partition.shards:
            shards.append(ShardRecord.model_validate_json(records[number]) if number in records else shard)
            number += 1
        if tuple(shards) != partition.shards:
            changed.append(partition.model_copy(update={"shards": tuple(shards)}))
    return changed


def _materialize(storage: Storage, manifest: Manifest, shard_size_bytes: int) -> list[PartitionRecord]:
    """Writes compact shards for groups of neighbouring partitions: the first of a group gets them, the others none."""
    import ray

    from pipeline.dataset.manifest import ShardRecord
    from pipeline.ingest.attempts import Attempts
    from pipeline.ingest.progress import Progress
    from pipeline.versions.rewrite import group_partitions, rewrite, without_repeated_keys

    groups, attempts = group_partitions(manifest, shard_size_bytes), Attempts(*KEY_VALUES)
    quieten_ray_data()

    def rewritten(row: dict[str, Any]) -> dict[str, Any]:
        group = groups[row["id"]]
        with attempts.at(f"{storage.uri}: partitions {group[0].id} to {group[-1].id}"):
            parts = without_repeated_keys(storage, [shard for partition in group for shard in partition.shards])
            names = [f"{group[0].id}-{number:03d}" for number in range(len(parts))]
            written = [rewrite(storage, part, name) for part, name in zip(parts, names, strict=True)]
        return {"group": row["id"], "shards": [shard.model_dump_json() for shard in written]}

    changed = []
    stream = ray.data.range(len(groups), override_num_blocks=max(1, min(len(groups), 1000))).map(rewritten)
    with Progress(len(groups), "groups", "materialize", WorkerWatch()) as progress:
        for row in stream.iter_rows():
            first, *others = groups[row["group"]]
            shards = tuple(ShardRecord.model_validate_json(shard) for shard in row["shards"])
            changed.append(first.model_copy(update={"shards": shards}))
            changed += [partition.model_copy(update={"shards": ()}) for partition in others]
            progress.update(1)
    return changed


def _refuse_repeated(storage: Storage, rules: Rules, options: argparse.Namespace) -> None:
    """Raises NotMeantError if a key names several samples, which may have nothing in common but their tars' numbering."""
    from pipeline.versions.takedown import keys_of_several

    several = keys_of_several(storage, rules)
    if several:
        key, tars = min(several.items())
        more = f", and {len(several) - 1:,} more such keys" if len(several) > 1 else ""
        shown = ", ".join(tars[:3]) + (f" and {len(tars) - 3:,} more" if len(tars) > 3 else "")
        raise NotMeantError(
            f"--remove {options.remove}: the key {without_userinfo(key)} is that of different samples, in {shown}{more}; "
            "nothing was removed: name a sample by its URL, or its image by the sha256 in the sidecar, in a file for "
            "curate.exclude_hashes, or pass --allow-repeated to remove all samples with these keys"
        )


def _take_down(storage: Storage, rules: Rules, options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Lists the versions and runs that used the removed samples; with --purge, rewrites the shards that hold them.

    Raises:
        NotMeantError: a line matched nothing, and nothing was purged then, unless it is allowed; or objects that no version
            names hold removed samples.
    """
    from pipeline.versions.takedown import find_holders, purge, runs_on

    holders = find_holders(storage, rules)
    missing = rules.removed - holders.found
    purges = options.purge and bool(holders.found) and (not missing or options.allow_missing)
    left = _left_over(storage, holders)
    if purges:
        manifest = purge(storage, rules, holders)
        held = "no object of a version here" if left else "no object"
        print(f"{storage.uri} version {manifest.version}: {held} holds the removed samples any more")
        if holders.urls:
            print("later rows with their URLs are dropped as `removed`, by the list in takedowns/; the same images under other")
            print("URLs are not: remove the samples from your tables, too")
        elif holders.shards:
            print("they have no URL by which later rows could be told: remove the samples from your tables, too")
    elif holders.found:
        print("a later table or retry that has them brings them back; after --purge none does that has their URLs")
    for version in holders.versions:
        gone = "; it can no longer be read" if purges else ""
        print(f"version {version} held some of the removed samples{gone}")
    for run_name, version in runs_on(runs, storage, holders.versions):
        print(f"run {run_name} was trained on version {version}, which held some of the removed samples")
    if not rules.removed:
        print(f"--remove {options.remove}: has no lines, so nothing was removed")
    if holders.waiting and not purges:
        shown = ", ".join(without_userinfo(line) for line in sorted(holders.waiting)[:MOST_LINES])
        print(f"{len(holders.waiting):,} lines name rows that are no samples, and that a retry may still fetch: {shown}")
    if missing:
        _report_missing(rules.removed, missing, options, purges)
    if purges and left:
        raise NotMeantError(left)


def _left_over(storage: Storage, holders: Holders) -> str:
    """Says which objects a purge leaves, of others or of an ingestion that is in progress or was killed; "" for none."""
    kinds = (
        (holders.uncommitted, "hold removed samples"),
        (holders.unsearched, "are tars without a sidecar, and may hold some"),
    )
    parts = [f"{len(names):,} {what}, such as {min(names)}" for names, what in kinds if names]
    lines = []
    if parts:
        lines.append(
            f"{storage.uri}: of the shards that no version names, {'; '.join(parts)}; an ingestion is in progress or was "
            f"killed: run it to its end, or python jobs/ingest.py ingest.output={storage.uri} --clean; then repeat this command"
        )
    if holders.in_place:
        tars = (
            f"{len(holders.in_place):,} tars that were indexed in place hold removed samples, such as {min(holders.in_place)}"
        )
        lines.append(f"{tars}: remove the samples there, or the tars")
    return "\n".join(lines)


def _report_missing(removed: frozenset[str], missing: frozenset[str], options: argparse.Namespace, purged: bool) -> None:
    """Names the lines of a takedown that matched nothing. Raises NotMeantError unless they are allowed."""
    shown = [without_userinfo(line) for line in sorted(missing)[:MOST_LINES]]
    more = [f"... and {len(missing) - MOST_LINES:,} more"] if len(missing) > MOST_LINES else []
    figures = f"{len(removed) - len(missing):,} of {len(removed):,} lines matched; not found: {', '.join([*shown, *more])}"
    if purged:
        print(f"--remove {options.remove}: {figures}")
        return
    lines = [f"--remove {options.remove}: {figures}"]
    purge = "nothing was purged; " if options.purge else ""
    allow = ", or pass --allow-missing to purge what matched" if options.purge and len(missing) < len(removed) else ""
    lines.append(f"{purge}a line is a key or a URL, as in the sidecars: fix the list and run the command again{allow}")
    raise NotMeantError("\n".join(lines))


def _summary(base: Manifest, manifest: Manifest) -> str:
    drops = _drops(manifest.shards)
    drops.subtract(_drops(base.shards))
    lines = [f"{base.num_samples:,} samples in version {base.version}"]
    lines += [f"  {reason:20} {-count:>+10,}" for reason, count in sorted(drops.items()) if count]
    empty = "" if manifest.num_samples else ": there is nothing to train on"
    lines.append(f"{manifest.num_samples:,} samples in version {manifest.version}{empty}")
    return "\n".join(lines)


def _drops(shards: tuple[ShardRecord, ...]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.selection.drops if shard.selection else {})
    return counts


def _tars(manifest: Manifest) -> int:
    return sum(shard.num_samples > 0 for shard in manifest.shards)


def arguments() -> JobParser:
    result = parser(__doc__, "curate")
    result.add_argument("--materialize", action="store_true", help="rewrite the remaining samples into compact shards")
    result.add_argument("--remove", metavar="FILE", help="file with keys or URLs of samples to remove, one per line")
    result.add_argument(
        "--purge",
        action="store_true",
        help="with --remove: rewrite or delete every object that holds the samples, and drop later rows with their URLs",
    )
    result.add_argument(
        "--allow-missing", action="store_true", help="with --purge: purge although some lines of the list match nothing"
    )
    result.add_argument(
        "--allow-repeated", action="store_true", help="with --remove: remove all samples with a key, also if they differ"
    )
    result.add_argument("--runs", metavar="DIR", help="with --remove: list the runs in DIR that were trained on the samples")
    return result


if __name__ == "__main__":
    main(arguments(), job)

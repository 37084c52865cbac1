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

from jobs.cli.command_line import connect_ray, parser, run
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from pipeline.config import CurateConfig
from pipeline.errors import InputError, NotMeantError
from pipeline.storage.url_credentials import without_userinfo
from training.ray_internals import quieten_ray_data

MOST_LINES = 20
"""Lines of a takedown that matched nothing and are named one by one."""

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord
    from pipeline.storage.base import Storage
    from pipeline.versions.curation import Rules


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.dataset.manifest import commit_choice, read_manifest
    from pipeline.storage.address import open_storage
    from pipeline.storage.put_if_absent import ensure_put_if_absent
    from pipeline.versions.curation import check_rules, read_rules

    if not config.curate.data:
        raise InputError("curate.data: is empty; name the folder or the s3://bucket/prefix of a data set")
    if options.allow_missing and not options.purge:
        raise InputError("--allow-missing: allows --purge of lists with lines that name no sample; pass it with --purge")
    if options.allow_repeated and not options.remove:
        raise InputError("--allow-repeated: allows --remove of keys that several samples have; pass it with --remove")
    if options.purge and not options.remove:
        raise InputError("--purge: there is nothing to purge; list the samples with --remove FILE")
    no_rules = CurateConfig(data=config.curate.data, single_writer=config.curate.single_writer)
    if config.curate == no_rules and not (options.remove or options.materialize):
        raise InputError("curate: no rule is set; set keys of curate.* (see --help), or pass --materialize or --remove")
    storage = open_storage(config.curate.data)
    base = read_manifest(storage, config.curate.version)
    rules = read_rules(config.curate, options.remove)
    if rules.removed and not options.allow_repeated:
        _refuse_repeated(storage, rules, options)
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
        _take_down(storage, rules, options)


def _choose(storage: Storage, base: Manifest, rules: Rules) -> list[PartitionRecord]:
    """The partitions that change, with the selections of their shards. Duplicates are grouped by hash prefix."""
    import ray

    from pipeline.versions.curation import DUPLICATE, duplicates, judge, select

    shards = base.shards

    def verdicts_of(batch: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {"shard": [], "position": [], "sha256": [], "bucket": [], "verdict": []}
        for shard in batch["id"].tolist():
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
    from pipeline.ingest.progress import Progress
    from pipeline.versions.rewrite import group_partitions, rewrite

    groups = group_partitions(manifest, shard_size_bytes)
    quieten_ray_data()

    def rewritten(row: dict[str, Any]) -> dict[str, Any]:
        group = groups[row["id"]]
        shards = [shard for partition in group for shard in partition.shards]
        return {"group": row["id"], "shards": [rewrite(storage, shards, f"{group[0].id}-000").model_dump_json()]}

    changed = []
    stream = ray.data.range(len(groups), override_num_blocks=max(1, min(len(groups), 1000))).map(rewritten)
    with Progress(len(groups), "groups", "materialize") as progress:
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


def _take_down(storage: Storage, rules: Rules, options: argparse.Namespace) -> None:
    """Lists the versions and runs that used the removed samples; with --purge, rewrites the shards that hold them.

    Raises:
        NotMeantError: a line matched nothing; nothing was purged then, unless it is allowed.
    """
    from pipeline.versions.takedown import find_holders, purge, runs_on

    holders = find_holders(storage, rules)
    missing = rules.removed - holders.found
    purges = options.purge and bool(holders.found) and (not missing or options.allow_missing)
    if purges:
        manifest = purge(storage, rules, holders)
        print(f"{storage.uri} version {manifest.version}: no object holds the removed samples any more")
    for version in holders.versions:
        gone = "; it can no longer be read" if purges else ""
        print(f"version {version} held some of the removed samples{gone}")
    for run_name, version in runs_on(options.runs, storage.uri, holders.versions) if options.runs else ():
        print(f"run {run_name} was trained on version {version}, which held some of the removed samples")
    if not rules.removed:
        print(f"--remove {options.remove}: has no lines, so nothing was removed")
    if missing:
        _report_missing(rules.removed, missing, options, purges)


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
        "--purge", action="store_true", help="with --remove: rewrite or delete every object that holds the samples"
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
    sys.exit(run(arguments(), job))

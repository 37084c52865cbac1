"""Indexes existing WebDataset tars (of img2dataset, LAION, ...) as a data set, without copying them.

    python jobs/index.py index.input=laion/shards index.output=data/laion
    python jobs/index.py index.input='s3://BUCKET/cc12m/*.tar' index.output=s3://BUCKET/cc12m-index index.caption_key=caption
    python jobs/train.py --config vit_b_32 data.uri=data/laion

Each tar is read once; training then reads the images where they are. Run it again when there are new tars: the others are
skipped. A tar that is not whole or that is compressed is named, with exit code 2; the others are indexed. If none that was
read has a sample, the exit code is 3.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.cli.command_line import connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.worker_watch import WorkerWatch
from pipeline.errors import InputError, NotMeantError, StorageAwayError, WorkerDiedError
from training.ray_internals import KEY_VALUES, quieten_ray_data

if TYPE_CHECKING:
    from pipeline.config import IndexConfig
    from pipeline.storage.base import Storage


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.dataset.manifest import list_versions, read_manifest
    from pipeline.storage.address import open_storage
    from pipeline.storage.put_if_absent import ensure_put_if_absent
    from pipeline.versions.foreign_tars import count_newest_samples, find_replaced, plan_index
    from pipeline.versions.whole_tar import find_compressed

    index = config.index
    storage = open_storage(index.output) if index.output else None
    manifest = read_manifest(storage) if storage is not None and list_versions(storage) else None
    tars = plan_index(index, manifest)
    assert storage is not None  # plan_index refuses an empty one
    compressed = find_compressed(tars)
    tars = [tar for tar in tars if tar not in compressed]
    problems = [*compressed.values(), *(find_replaced(index, manifest) if manifest else [])]
    away: list[str] = []
    samples = None
    if tars:
        ensure_put_if_absent(storage, index.single_writer, "index.single_writer")
        connect_ray(config.cluster)
        samples, refused, away = _index(storage, tars, index)
        problems += refused
    elif not problems:
        samples = count_newest_samples(index, storage)
        empty = "" if samples else ", and those read last have no sample"
        print(f"nothing to do: {storage.uri} holds all these tars{empty}")
    if away:
        raise StorageAwayError("\n".join([*problems, *away]))
    if problems:
        raise InputError("\n".join(problems))
    if not samples:
        raise NotMeantError(
            f"index.input={index.input}: none of the tars read last has a sample; `tar tf TAR` lists their members; if "
            "captions are missing, set index.caption_key; then index them into a new index.output, since this one holds them"
        )


def _index(storage: Storage, tars: list[str], index: IndexConfig) -> tuple[int, list[str], list[str]]:
    """Indexes tars on Ray and commits those that are whole, also if the run is stopped.

    Returns the number of samples, messages about tars that are refused, and about tars that another run may read: their storage
    did not respond, or their workers died.
    """
    import ray

    from pipeline.dataset.manifest import commit
    from pipeline.ingest.attempts import Attempts
    from pipeline.ingest.progress import Progress
    from pipeline.versions.foreign_tars import IndexedTar, describe, describe_copies

    def indexed(row: dict[str, Any]) -> dict[str, Any]:
        from pipeline.versions.foreign_tars import read_tar

        try:
            with attempts.at(row["tar"]):
                return {"done": read_tar(row["tar"], index).model_dump_json(), "problem": "", "away": ""}
        except (StorageAwayError, WorkerDiedError) as error:
            return {"done": "", "problem": "", "away": str(error)}
        except InputError as error:
            return {"done": "", "problem": str(error), "away": ""}

    attempts = Attempts(*KEY_VALUES)
    quieten_ray_data()
    stream = ray.data.from_items([{"tar": tar} for tar in tars], override_num_blocks=len(tars)).map(indexed)
    done: list[IndexedTar] = []
    problems: list[str] = []
    away: list[str] = []
    try:
        with Progress(len(tars), "tars", "index", WorkerWatch()) as progress:
            for row in stream.iter_rows():
                done += [IndexedTar.model_validate_json(row["done"])] if row["done"] else []
                problems += [row["problem"]] if row["problem"] else []
                away += [row["away"]] if row["away"] else []
                progress.update(1)
    finally:
        if done:
            manifest = commit(storage, [one.record for one in done])
            empty = "" if manifest.num_samples else ": there is nothing to train on"
            print(
                f"{storage.uri} version {manifest.version}: {manifest.num_samples:,} samples in {len(manifest.shards):,} tars"
                f"{empty}"
            )
            for line in [*describe(done), *describe_copies(done, manifest)]:
                print(line, file=sys.stderr)
    return sum(one.record.counts.get("success", 0) for one in done), sorted(problems), sorted(away)


def arguments() -> JobParser:
    return parser(__doc__, "index")


if __name__ == "__main__":
    main(arguments(), job)

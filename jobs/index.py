"""Indexes existing WebDataset tars (of img2dataset, LAION, ...) as a data set, without copying them.

    python jobs/index.py index.input=laion/shards index.output=data/laion
    python jobs/index.py index.input='s3://BUCKET/cc12m/*.tar' index.output=s3://BUCKET/cc12m-index index.caption_key=caption
    python jobs/train.py --config vit_b_32 data.uri=data/laion

Each tar is read once; training then reads the images where they are. Run it again when there are new tars: the others are
skipped.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jobs.cli.command_line import connect_ray, parser, run
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from training.ray_internals import quieten_ray_data


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.dataset.manifest import PartitionRecord, commit, list_versions, read_manifest
    from pipeline.ingest.progress import Progress
    from pipeline.storage.address import open_storage
    from pipeline.versions.foreign_tars import plan_index

    index = config.index
    storage = open_storage(index.output) if index.output else None
    manifest = read_manifest(storage) if storage is not None and list_versions(storage) else None
    tars = plan_index(index, manifest)
    assert storage is not None  # plan_index refuses an empty one
    if not tars:
        print(f"nothing to do: {storage.uri} holds all these tars")
        return
    storage.check_writable()
    connect_ray(config.cluster)
    import ray

    def indexed(row: dict[str, Any]) -> dict[str, Any]:
        from pipeline.versions.foreign_tars import index_tar

        return {"record": index_tar(row["tar"], index).model_dump_json()}

    quieten_ray_data()
    stream = ray.data.from_items([{"tar": tar} for tar in tars], override_num_blocks=len(tars)).map(indexed)
    records = []
    with Progress(len(tars), "tars", "index") as progress:
        for row in stream.iter_rows():
            records.append(PartitionRecord.model_validate_json(row["record"]))
            progress.update(1)
    manifest = commit(storage, records)
    print(f"{storage.uri} version {manifest.version}: {manifest.num_samples:,} samples in {len(manifest.shards):,} tars")


def arguments() -> JobParser:
    return parser(__doc__, "index")


if __name__ == "__main__":
    sys.exit(run(arguments(), job))

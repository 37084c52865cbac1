"""Turns tables of URLs into shards and a new version of a data set.

    python jobs/ingest.py ingest.input=pairs.parquet ingest.output=data/pairs
    python jobs/ingest.py ingest.input='s3://BUCKET/tables/*.parquet' ingest.output=s3://BUCKET/pairs ingest.caption_column=alt
    ray job submit --working-dir . -- python jobs/ingest.py ingest.input=s3://BUCKET/table.csv ingest.output=s3://BUCKET/pairs

Safe to run again at any time: rows that the data set holds are not fetched again, so a second run has nothing to do, and a
run over a grown table fetches the new rows only. Endpoint and keys of S3 come from the environment (AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import argparse
import sys

from jobs.command import connect_ray, parser, run
from jobs.config import Config


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.plan import plan_ingest

    plan = plan_ingest(config.ingest)  # bad input is refused here, before Ray starts
    if plan.partitions:
        connect_ray()
    from pipeline.ingest import run_ingest

    print(run_ingest(config.ingest, plan))


if __name__ == "__main__":
    sys.exit(run(parser(__doc__), job))

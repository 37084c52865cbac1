"""Trains CLIP on a data set that jobs/ingest.py wrote.

    python jobs/train.py --config demo data.uri=data/demo/train     on this machine
    python jobs/train.py --config debug_cpu data.uri=DATA           a 30-step smoke run of a tiny ViT
    ray job submit -- python jobs/train.py                          the default recipe, on the running cluster
    ray job submit --working-dir . -- python jobs/train.py --config vit_b_32 data.uri=s3://BUCKET/DATA run.dir=s3://BUCKET/runs

Without --config it is the recipe jobs/recipes/default.yaml: a small CLIP on the demo's data set. A run whose name exists
already goes on from its last checkpoint. Results: RUN_DIR/NAME/{metrics.jsonl, checkpoints/, result.json, config.yaml}.
"""

from __future__ import annotations

import argparse
import sys

from jobs.command import connect_ray, parser, run
from jobs.config import Config


def job(config: Config, options: argparse.Namespace) -> None:
    from training.plan import plan_run

    plan_run(config)  # bad input is refused here, before Ray starts
    connect_ray()
    from training.worker import run_training

    result = run_training(config)
    print(f"\ntrained {result.step:,} steps, {result.samples_seen:,} samples; run folder: {result.run}")
    for name, value in result.evaluation.items():
        print(f"  {name.removeprefix('evaluation/'):32} {value:.4f}")
    print(f"next: python jobs/evaluate.py run.dir={config.run.dir} run.name={config.run.name} --help")


if __name__ == "__main__":
    sys.exit(run(parser(__doc__), job))

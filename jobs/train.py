"""Trains CLIP on a data set that jobs/ingest.py wrote.

    python jobs/train.py --config demo data.uri=data/demo/train     on this machine
    python jobs/train.py --config debug_cpu data.uri=DATA           a 30-step smoke run of a tiny ViT
    ray job submit -- python jobs/train.py                          the default recipe, on the running cluster
    python jobs/submit.py --working-dir . -- python jobs/train.py --config vit_b_32 data.uri=s3://BUCKET/DATA run.dir=...

Without --config it is the recipe jobs/recipes/default.yaml: a small CLIP on the demo's data set. A run whose name exists
already goes on from its last checkpoint. Results: RUN_DIR/NAME/{metrics.jsonl, checkpoints/, result.json, config.yaml}, and
report.html, a page with all of it (jobs/report.py).

    python jobs/train.py --check --config vit_b_32 data.uri=...     finds in two minutes what would stop it: storage, shards,
                                                                    versions, clocks, memory, the network; trains nothing

SIGTERM (or `ray job stop`) saves a checkpoint after the step and ends with exit code 143; the same command goes on.
"""

from __future__ import annotations

import argparse
import sys

from jobs.cli.command_line import EXIT_FAILED, EXIT_STOPPED, connect_ray, parser, run
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.report import report_at_the_end


def arguments() -> JobParser:
    result = parser(__doc__, "train")
    result.add_argument("--check", action="store_true", help="look whether the run can work, on all nodes; train nothing")
    return result


def job(config: Config, options: argparse.Namespace) -> int:
    from training.run_plan import plan_run

    plan = plan_run(config)  # bad input is refused here, before Ray starts
    for line in plan.newer_data():
        print(line)
    connect_ray(config.cluster)
    if options.check:
        from jobs.cli.cluster_check import check

        return 0 if check(config) else EXIT_FAILED
    from training.evaluation.figures import table
    from training.worker import run_training

    result = run_training(config)
    if not result.finished:
        print(f"\nstopped at step {result.step:,}; the same command goes on from {result.checkpoint}")
        return EXIT_STOPPED
    print(f"\ntrained {result.step:,} steps, {result.samples_seen:,} samples; run folder: {result.run}")
    if result.evaluation:
        print(table(result.evaluation))
    page = report_at_the_end(config)
    if page:
        print(f"report: {page}")
    print(f"next: python jobs/evaluate.py run.dir={config.run.dir} run.name={config.run.name} --help")
    return 0


if __name__ == "__main__":
    sys.exit(run(arguments(), job))

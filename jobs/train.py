"""Trains CLIP on a data set that jobs/ingest.py wrote.

    python jobs/train.py --config demo data.uri=data/demo/train     on this machine
    python jobs/train.py --config debug_cpu data.uri=DATA           a 30-step smoke run of a tiny ViT
    ray job submit -- python jobs/train.py                          the default recipe, on the running cluster
    python jobs/submit.py --working-dir . -- python jobs/train.py --config vit_b_32 data.uri=s3://BUCKET/DATA run.dir=...

    python jobs/train.py --check --config vit_b_32 data.uri=...     checks storage, shards, versions, memory and network

Without --config, the recipe is jobs/recipes/default.yaml: a small CLIP on the demo's data set. A run whose name exists already
resumes from its last checkpoint. Results: RUN_DIR/NAME/{metrics.jsonl, checkpoints/, result.json, config.yaml, report.html}.

Ctrl-C and SIGTERM (or `ray job stop`) save a checkpoint after the current step and exit with code 130 or 143; the same command
resumes.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from jobs.cli.command_line import EXIT_FAILED, EXIT_STOPPED, connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.room import refuse_on_a_ray_of_our_own, training_demand
from jobs.report import report_at_the_end

if TYPE_CHECKING:
    from training.record.run_record import TrainResult
    from training.run_plan import RunPlan


def arguments() -> JobParser:
    result = parser(__doc__, "train")
    result.add_argument("--check", action="store_true", help="check every node, then exit without training (two minutes)")
    return result


def job(config: Config, options: argparse.Namespace) -> int:
    if options.check:
        _plan(config)
        connect_ray(config.cluster)
        from jobs.cli.cluster_check import check

        return 0 if check(config) else EXIT_FAILED
    result = train_run(config)
    from training.evaluation.figures import table

    if not result.finished:
        print(f"\nstopped at step {result.step:,}; the same command resumes from {result.checkpoint}")
        print_sync(result.wandb_sync)
        return EXIT_STOPPED
    print(f"\ntrained {result.step:,} steps, {result.samples_seen:,} samples; run folder: {result.run}")
    if result.evaluation:
        print(table(result.evaluation))
    page = report_at_the_end(config)
    if page:
        print(f"report: {page}")
    print_sync(result.wandb_sync)
    print(f"next: {_next_command(config, bool(result.evaluation))}")
    return 0


def _next_command(config: Config, evaluated: bool) -> str:
    """The command that usually follows: to measure the run on held-out data, or to export it."""
    run = shlex.join([f"run.dir={config.run.dir}", f"run.name={config.run.name}"])
    if evaluated:
        return f"python jobs/export.py {run} --output exports/{config.run.name}"
    return f"python jobs/evaluate.py {run} evaluation.retrieval_uri=HELDOUT"


def train_run(config: Config) -> TrainResult:
    """Trains a run on Ray, and waits for its end."""
    from training.record.run_record import check_run_folder

    check_run_folder(_plan(config).run, config.run.single_writer)
    connect_ray(config.cluster)
    refuse_on_a_ray_of_our_own(training_demand(config.cluster))
    from training.worker import run_training

    return run_training(config)


def _plan(config: Config) -> RunPlan:
    """Refuses bad input before Ray starts, and says which batch size was chosen and which data is newer than the run's."""
    from training.run_plan import plan_run

    plan = plan_run(config)
    size, wanted = plan.config.train.global_batch_size, config.train.global_batch_size
    if size < wanted:
        print(
            f"train.global_batch_size={size} instead of {wanted:,}: {plan.order.epoch_samples:,} samples are then "
            f"{plan.order.steps_per_epoch} steps an epoch (train.min_steps_per_epoch={config.train.min_steps_per_epoch})"
        )
    for line in plan.newer_data():
        print(line)
    return plan


def print_sync(command: str) -> None:
    """Says how to upload a run of W&B that is offline."""
    if command:
        print(f"W&B has this run once you upload it: {command}")


if __name__ == "__main__":
    main(arguments(), job)

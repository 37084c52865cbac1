"""Compares RayCLIP with its peers, in one run on one machine, as ratios.

    python jobs/benchmark.py ingest                 images per CPU-second and per second against img2dataset, HTTP and HTTPS
    python jobs/benchmark.py ingest --scheme http   the same, shorter
    python jobs/benchmark.py ingest-yield           successes on a server that misbehaves
    python jobs/benchmark.py ingest-plan            the driver's memory for one and for ten million rows
    python jobs/benchmark.py data                   the data loader against webdataset and Ray Data: cost, memory, mixing
    python jobs/benchmark.py train --model RN50     a step of a model against open_clip's
    python jobs/benchmark.py train --side ours      the same of our side alone, where open_clip is not installed
    python jobs/benchmark.py loss                   memory and time of the loss against the plain local loss
    python jobs/benchmark.py end-to-end             a run from shards on S3: time spent waiting for data
    python jobs/benchmark.py ray                    jobs/train.py with one worker against the bare loop
    python jobs/benchmark.py workers                two workers of one thread against one
    python jobs/benchmark.py checkpoints            time that training waits for a checkpoint
    python jobs/benchmark.py embed                  jobs/embed.py against the forward pass alone; decoding
    python jobs/benchmark.py parity                 500 steps here and in open_clip, from the same weights
    python jobs/benchmark.py retrieval              retrieval metrics of 100,000 pairs against blocks of rows

Needs the `test` extra, which installs the peers, and an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from jobs.benchmarks import (
    data_loading,
    embedding,
    ingestion,
    loss_cost,
    parity,
    ranking,
    training_step,
    whole_runs,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_ingestion(commands)
    _add_training(commands)
    options = parser.parse_args(argv)
    print(options.run(options))
    return 0


def _add_ingestion(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run_schemes(options: argparse.Namespace) -> str:
        schemes = ("http", "https") if options.scheme == "both" else (options.scheme,)
        return "\n".join(ingestion.run(one, options.small_rows, options.rows, options.repeats) for one in schemes)

    ingest = commands.add_parser("ingest", help="ingestion's cost and speed")
    ingest.set_defaults(run=run_schemes)
    ingest.add_argument("--rows", type=int, default=15_000, help="rows of the large table (default: %(default)s)")
    ingest.add_argument("--small-rows", type=int, default=5_000, help="rows of the small table (default: %(default)s)")
    ingest.add_argument("--repeats", type=int, default=3, help="repetitions of the comparison (default: %(default)s)")
    ingest.add_argument("--scheme", choices=("http", "https", "both"), default="both")
    misbehaving = commands.add_parser("ingest-yield", help="ingestion's yield on a server that misbehaves")
    misbehaving.set_defaults(run=lambda options: ingestion.run_yield(options.rows))
    misbehaving.add_argument("--rows", type=int, default=2_000)
    planning = commands.add_parser("ingest-plan", help="memory of the driver")
    planning.set_defaults(run=lambda options: ingestion.run_plan(tuple(options.rows)))
    planning.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])


def _add_training(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="cost, memory, time to the first batch and mixing of the data loader")
    data.set_defaults(run=lambda options: data_loading.run(options.samples, options.repeats))
    data.add_argument("--samples", type=int, default=12_000)
    data.add_argument("--repeats", type=int, default=3, help="repetitions of the comparison (default: %(default)s)")

    _add_step(commands)
    loss = commands.add_parser("loss", help="memory and time of the loss")
    loss.set_defaults(run=lambda options: loss_cost.run(tuple(options.global_batches), options.repeats))
    loss.add_argument("--global-batches", type=int, nargs="+", default=[4_096, 8_192, 16_384, 32_768, 65_536])
    loss.add_argument("--repeats", type=int, default=3)
    _add_whole_run(commands, "end-to-end", whole_runs.run_end_to_end, "a run from shards on S3", 32, 12, 1)
    ray = _add_whole_run(commands, "ray", whole_runs.run_ray, "the overhead of Ray", 16, 16, 3, threads=True)
    ray.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the one worker (default: all cores)")
    _add_whole_run(commands, "workers", whole_runs.run_workers, "two workers against one", 64, 5, 2)
    _add_whole_run(commands, "checkpoints", whole_runs.run_checkpoints, "time that training waits for a checkpoint", 16, 20, 2)
    _add_embedding(commands)
    whole = commands.add_parser("parity", help="the same run here and in open_clip")
    whole.set_defaults(
        run=lambda options: parity.run(options.model, options.steps, options.seeds, options.data_dir, options.control)
    )
    whole.add_argument("--model", choices=tuple(parity.LEARNING_RATES), default="debug-vit")
    whole.add_argument("--control", action="store_true", help="also run with one thread less: the effect of rounding alone")
    whole.add_argument("--steps", type=int, default=500)
    whole.add_argument("--seeds", type=int, default=3)
    retrieval = commands.add_parser("retrieval", help="time and memory of the retrieval metrics")
    retrieval.set_defaults(run=lambda options: ranking.run(options.pairs, options.dimensions, options.threads, options.repeats))
    retrieval.add_argument("--pairs", type=int, default=100_000)
    retrieval.add_argument("--dimensions", type=int, default=512)
    retrieval.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    retrieval.add_argument("--repeats", type=int, default=1)
    whole.add_argument(
        "--data-dir", default="data/demo", help="the demo's data sets; created if missing (default: %(default)s)"
    )


def _add_step(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run_step(options: argparse.Namespace) -> str:
        setting = training_step.Setting(
            name=options.model,
            batch_size=options.batch_size,
            device=options.device,
            precision=options.precision,
            compile=options.compile,
            checkpointing=options.checkpointing,
            micro_batch_size=options.micro_batch_size,
            ddp=options.ddp,
        )
        sides = tuple(training_step.SIDES) if options.side == "both" else (options.side,)
        return training_step.run(setting, options.repeats, options.steps, options.threads, sides, options.loader)

    train = commands.add_parser("train", help="pairs per second of a model's step")
    train.set_defaults(run=run_step)
    train.add_argument("--model", default="ViT-B/32")
    train.add_argument("--batch-size", type=int, default=32)
    train.add_argument("--side", choices=("both", *training_step.SIDES), default="both", help="(default: %(default)s)")
    train.add_argument("--repeats", type=int, default=5, help="rounds, in which the sides take turns (default: %(default)s)")
    train.add_argument("--steps", type=int, default=1, help="steps of a round; use 20 on a GPU (default: %(default)s)")
    train.add_argument("--threads", type=int, help="threads of torch (default: torch's own)")
    train.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    train.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    train.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    train.add_argument("--checkpointing", action="store_true", help="activation checkpointing on both sides")
    train.add_argument("--micro-batch-size", type=int, help="pairs at a time; both sides embed each pair twice then")
    train.add_argument("--ddp", action="store_true", help="DDP around both models, with one rank")
    train.add_argument("--loader", type=int, metavar="WORKERS", help="decode made images, in so many processes a side")


def _add_embedding(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run_embedding(options: argparse.Namespace) -> str:
        sizes = (options.batch_size, options.shards, options.shard_samples)
        return embedding.run(embedding.Setting(options.model, *sizes, options.threads), options.repeats)

    embed = commands.add_parser("embed", help="embedding against the forward pass alone")
    embed.set_defaults(run=run_embedding)
    embed.add_argument("--model", default="ViT-B/32")
    embed.add_argument("--batch-size", type=int, default=64)
    embed.add_argument("--shards", type=int, default=4)
    embed.add_argument("--shard-samples", type=int, default=512)
    embed.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the one worker (default: all cores)")
    embed.add_argument("--repeats", type=int, default=3, help="repetitions of the comparison (default: %(default)s)")


def _add_whole_run(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[..., str],
    text: str,
    batch_size: int,
    steps: int,
    repeats: int,
    threads: bool = False,
) -> argparse.ArgumentParser:
    """Adds a benchmark of whole runs; `threads`: the function also takes a number of threads."""

    def run(options: argparse.Namespace) -> str:
        more = (options.threads,) if threads else ()
        return function(options.recipe, options.batch_size, options.steps, options.repeats, *more)

    whole = commands.add_parser(name, help=text)
    whole.set_defaults(run=run)
    whole.add_argument("--recipe", default="vit_b_32", help="(default: %(default)s)")
    whole.add_argument("--batch-size", type=int, default=batch_size, help="global batch size (default: %(default)s)")
    whole.add_argument("--steps", type=int, default=steps, help="steps per run (default: %(default)s)")
    whole.add_argument("--repeats", type=int, default=repeats, help="(default: %(default)s)")
    return whole


if __name__ == "__main__":
    sys.exit(main())

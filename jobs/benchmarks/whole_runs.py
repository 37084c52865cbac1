"""Measures whole training runs: their wait for data from S3, the overhead of Ray, and the gain of a second worker.

Runs use the model's recipe with another batch size, on photographs with captions as long as those of web data. Speeds come from
metrics.jsonl, without the first steps. Needs the `test` extra.

    python jobs/benchmarks/whole_runs.py RECIPE.yaml  trains in this process; called by benchmark.py end-to-end, ray, workers
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from jobs.benchmarks.stored_tars import ROOT, index, s3_server, upload, write_tars
from jobs.benchmarks.synthetic_data import captions
from jobs.cli.config import dump_config, load_config

WARM_UP_STEPS = 2
BARE, RAY = [__file__], [str(ROOT / "jobs" / "train.py"), "--config"]


def run_end_to_end(recipe: str, batch_size: int, steps: int, repeats: int) -> str:
    """Trains in a bare process from shards on S3: pairs per second, and the share of a step spent waiting for data."""
    lines = [f"{recipe}, {batch_size} pairs a step, from S3, {os.cpu_count()} cores\n{'run':>4}{'pairs/s':>9}{'data wait':>11}"]
    with tempfile.TemporaryDirectory() as temporary, s3_server() as server:
        write_tars(Path(temporary) / "tars", captions(batch_size * steps + 1_000))
        remote = upload(Path(temporary) / "tars", server)
        index(remote["tars"], remote["indexed"])
        for repeat in range(repeats):
            path = _recipe(Path(temporary), recipe, remote["indexed"], batch_size, steps)
            rows = _train(BARE, path, server.environment)
            waits = [row["data_wait_s"] / _step_s(row) for row in rows]
            lines.append(f"{repeat + 1:>4}{_rate(rows):>9.2f}{median(waits):>11.2%}, at most {max(waits):.2%}")
    return "\n".join(lines)


def run_ray(recipe: str, batch_size: int, steps: int, repeats: int, threads: int) -> str:
    """Compares jobs/train.py with one worker to the same run in a bare process, in turns, with the same threads."""
    lines = [
        f"{recipe}, {batch_size} pairs a step, {threads} of {os.cpu_count()} cores\n"
        f"{'run':>4}{'bare pairs/s':>14}{'Ray pairs/s':>13}{'ratio':>8}"
    ]
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        data = _local_data(Path(temporary), batch_size * steps)
        path = _recipe(Path(temporary), recipe, data, batch_size, steps, f"cluster.cpus_per_worker={threads}")
        for repeat in range(repeats):
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            bare, ray = (_rate(_train(command, path, environment)) for command in (BARE, RAY))
            ratios.append(ray / bare)
            lines.append(f"{repeat + 1:>4}{bare:>14.2f}{ray:>13.2f}{ratios[-1]:>8.3f}")
    return "\n".join([*lines, f"jobs/train.py over the bare loop: {median(ratios):.3f}x"])


def run_workers(recipe: str, batch_size: int, steps: int, repeats: int) -> str:
    """Compares two workers of one thread each to one worker of one thread, with the same global batch, in turns."""
    lines = [f"{recipe}, a global batch of {batch_size}, one thread a worker"]
    lines.append(f"{'run':>4}{'1: pairs/s':>12}{'2: pairs/s':>12}{'ratio':>8}{'communication':>15}{'of the slower':>15}")
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        data = _local_data(Path(temporary), batch_size * steps)
        for repeat in range(repeats):
            found = []
            for workers in (1, 2):
                overrides = ("cluster.cpus_per_worker=1", f"cluster.num_workers={workers}")
                found.append(_train(RAY, _recipe(Path(temporary), recipe, data, batch_size, steps, *overrides)))
            one, two = map(_rate, found)
            ratios.append(two / one)
            shares = [median(row[f"{kind}communication_s"] / _step_s(row) for row in found[1]) for kind in ("", "slowest_")]
            lines.append(f"{repeat + 1:>4}{one:>12.2f}{two:>12.2f}{ratios[-1]:>8.2f}{shares[0]:>15.1%}{shares[1]:>15.1%}")
    return "\n".join([*lines, f"two workers over one: {median(ratios):.2f}x"])


def run_checkpoints(recipe: str, batch_size: int, steps: int, repeats: int) -> str:
    """Compares a bare run that saves halfway to one that does not, in turns: the wait for a checkpoint, and the slow-down of
    steps while it is written.
    """
    lines = [f"{recipe}, {batch_size} pairs a step, a checkpoint each {steps} steps, {os.cpu_count()} cores"]
    lines.append(f"{'run':>4}{'waits s':>9}{'of the interval':>17}{'interval s':>12}{'without s':>11}{'longer':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        data = _local_data(Path(temporary), batch_size * 2 * steps)
        for repeat in range(repeats):
            found = []
            for every in (steps, 2 * steps):
                settings = (f"checkpoint.every_steps={every}", "checkpoint.keep_last=1", "train.log_every_steps=1")
                rows = _train(BARE, _recipe(Path(temporary), recipe, data, batch_size, 2 * steps, *settings))
                found.append(rows[steps - WARM_UP_STEPS :])  # the interval that starts with the checkpoint
            waits = sum(row["checkpoint_s"] for row in found[0])
            with_one, without = (sum(row["train_s"] + row["checkpoint_s"] for row in rows) for rows in found)
            times = f"{with_one:>12.1f}{without:>11.1f}{with_one / without - 1:>8.1%}"
            lines.append(f"{repeat + 1:>4}{waits:>9.2f}{waits / without:>17.2%}{times}")
    return "\n".join(lines)


def _local_data(folder: Path, samples: int) -> str:
    write_tars(folder / "tars", captions(samples))
    index(str(folder / "tars"), str(folder / "data"))
    return str(folder / "data")


def _recipe(folder: Path, recipe: str, data: str, batch_size: int, steps: int, *overrides: str) -> Path:
    """Writes the resolved recipe of a new run."""
    name = f"run-{len(list(folder.glob('*.yaml')))}"
    settings = (
        f"run.name={name}",
        f"run.dir={folder / 'runs'}",
        f"data.uri={data}",
        f"train.global_batch_size={batch_size}",
        f"train.max_steps={steps}",
        "train.log_every_steps=1",
        "optimizer.warmup_steps=1",
        f"checkpoint.every_steps={steps}",
        "data.num_streams=64",
        "tracking.wandb_mode=disabled",
    )
    path = folder / f"{name}.yaml"
    path.write_text(dump_config(load_config(recipe, [*settings, *overrides])), encoding="utf-8")
    return path


def _train(command: list[str], recipe: Path, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Trains, and removes the run. Returns its record without the first steps."""
    import shutil

    from training.record.tracking import read_metrics

    config = load_config(str(recipe))
    folder = Path(config.run.dir) / config.run.name
    shutil.rmtree(folder, ignore_errors=True)
    full = [sys.executable, *command, str(recipe)]
    environment = (environment or dict(os.environ)) | {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(full, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    shutil.rmtree(folder)
    return rows[WARM_UP_STEPS:]


def _rate(rows: list[dict[str, Any]]) -> float:
    return median(row["samples_per_s"] for row in rows)


def _step_s(row: dict[str, Any]) -> float:
    return float(row["data_wait_s"] + row["compute_s"] + row["communication_s"])


if __name__ == "__main__":
    from training.distributed import World, pick_device
    from training.trainer import train

    recipe = load_config(sys.argv[1])
    train(recipe, World(rank=0, world_size=1, device=pick_device(recipe.train.device)))

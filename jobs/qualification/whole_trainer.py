"""The whole trainer on images that are made, stored and decoded here, against steps whose batches lie ready."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import Setting
from jobs.benchmarks.synthetic_data import write_data_set
from jobs.benchmarks.training_step import measure
from jobs.qualification.judgement import ON_CUDA, Aim, Figure
from jobs.qualification.kernel_classes import busy_share, kernel_spans
from jobs.qualification.memory_fit import fitting_micro_batch, free_memory
from jobs.qualification.scale import Scale


def trainer(scale: Scale) -> Iterator[Figure]:
    """Pairs per second, wait for data, and gaps between kernels, with a decoding process on each CPU but one."""
    batch_size, steps = scale.size((4096, 30), (16, 3))
    setting = Setting(scale.model, batch_size, scale.device, scale.precision)
    setting = replace(setting, micro_batch_size=fitting_micro_batch(setting))
    ready = measure(setting, ReadyBatches(setting, scale.size(12, 3), raw=True), 1, scale.size(10, 1), ("ours",))["ours"]
    yield Figure("batches that lie ready", batch_size / ready.median_s, "pairs/s")
    workers = scale.size(max(1, len(os.sched_getaffinity(0)) - 1), 0)
    yield Figure("processes that decode", workers)
    with tempfile.TemporaryDirectory() as temporary:
        size = write_data_set(f"{temporary}/data", scale.size(4, 2) * batch_size)
        yield Figure("bytes of a sample", size / (scale.size(4, 2) * batch_size) / 1e3, "kB")
        free_memory()
        options = (scale, Path(temporary), batch_size, workers)
        rows = _train(*options, "timed", steps)[1:]  # the first one has the start in it
        rate = median(row["samples_per_s"] for row in rows)
        yield Figure("the trainer", rate, "pairs/s")
        yield Figure("the trainer over batches that lie ready", rate * ready.median_s / batch_size, aim=Aim(0.95, on=ON_CUDA))
        waits = [row["data_wait_share"] for row in rows]
        yield Figure("wait for data, share of a step", median(waits), aim=Aim(most=0.02, on=ON_CUDA))
        yield Figure("wait for data, largest share", max(waits))
        if scale.device == "cuda":
            yield Figure("share of the time in which the device computes", _busy(*options, steps=12))


def _train(scale: Scale, folder: Path, batch_size: int, workers: int, name: str, steps: int) -> list[dict[str, float]]:
    """Trains for some steps and returns their rows of metrics.jsonl."""
    from jobs.cli.config import load_config
    from training.distributed import World
    from training.record.tracking import read_metrics
    from training.trainer import train

    overrides = [
        f"run.name={name}",
        f"run.dir={folder}",
        f"data.uri={folder}/data",
        f"data.decode_workers={workers}",
        "data.block_size_samples=64",
        "data.num_streams=64",
        "data.prefetch_bytes=4294967296",
        f"model.name={scale.model}",
        f"train.global_batch_size={batch_size}",
        "train.micro_batch_size=auto",
        f"train.max_steps={steps}",
        "train.num_epochs=1000",
        f"train.log_every_steps={scale.size(5, 1)}",
        "optimizer.warmup_steps=1",
        f"checkpoint.every_steps={steps}",
        "tracking.wandb_mode=disabled",
    ]
    train(load_config("vit_b_32", overrides), World(0, 1, scale.torch_device))
    return [row for row in read_metrics(folder / name / "metrics.jsonl") if "loss" in row]


def _busy(scale: Scale, folder: Path, batch_size: int, workers: int, steps: int) -> float:
    """Share of the second half of a run in which the device computes; the first half includes its start."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _train(scale, folder, batch_size, workers, "profiled", steps)
    spans = sorted(kernel_spans(profiler, scale.device), key=lambda span: span[1])
    middle = (spans[0][1] + spans[-1][2]) / 2
    return busy_share(span for span in spans if span[1] >= middle)

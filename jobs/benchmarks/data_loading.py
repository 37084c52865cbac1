"""Compares the data loader with webdataset's own pipeline and Ray Data, on the same tars, in one run.

Each side is a process that reads a number of samples after a warm-up; CPU seconds are those of the whole machine, minus those
of the S3 server, so nothing else may run. Needs Linux and the `test` extra.

    python jobs/benchmarks/data_loading.py SIDE FOLDER ADDRESS      one side alone; benchmark.py data runs them all
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from jobs.benchmarks.stored_tars import ROOT, SHARD_SAMPLES, SHORT_SIDE_PX, Server, index, s3_server, upload, write_tars

SIDES = ("raw", "raw-webdataset", "raw-ray", "decoded", "decoded-webdataset", "one-worker", "decoder")
WARM_UP, BATCH, SIZE_PX = 4_096, 256, 224
PREFETCH_BYTES = 512 << 20


def run(samples: int, repeats: int) -> str:
    """Runs every side in turn, several times, locally and from S3. Returns tables of medians."""
    lines = []
    with tempfile.TemporaryDirectory() as temporary, s3_server() as server:
        folder = Path(temporary) / "tars"
        size = write_tars(folder, [f"a photograph of thing number {number} in a place" for number in range(samples)])
        local = f"{temporary}/indexed"
        remote = upload(folder, server)
        index(str(folder), local)
        index(remote["tars"], remote["indexed"])
        lines.append(f"{samples:,} JPEGs of {size / samples / 1e3:.0f} kB, short side {SHORT_SIDE_PX}, {os.cpu_count()} cores")
        for place, tars, data in (("local", str(folder), local), ("S3", remote["http"], remote["indexed"])):
            lines.append(f"\n{place:20}{'CPU ms/sample':>15}{'samples/s':>11}{'peak MiB over idle':>20}")
            found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(repeats):
                for side in SIDES:
                    if place == "local" or not side.endswith("ray"):
                        address = tars if side.endswith(("webdataset", "ray")) else data
                        found[side].append(_child(side, address, samples, server))
            lines += [_line(side, results) for side, results in found.items() if results]
            lines += _compare(found)
            lines += _first_batches(data, server, repeats)
    return "\n".join([*lines, "", mixing()])


def mixing(num_samples: int = 1_000_000, num_categories: int = 1_000) -> str:
    """Measures how evenly batches are mixed when the data set is sorted by category.

    The design effect (Kish) is the variance of a category's share, relative to a full shuffle: 1 is as good as a full shuffle.
    Taken over ten batches together, it shows how long neighbouring batches resemble each other.
    """
    from training.config import DataConfig
    from training.data.data_sets import block_size_samples
    from training.data.order_layout import Source
    from training.data.sample_order import SampleOrder

    lines = [f"mixing: {num_samples:,} samples in {num_categories:,} sorted categories, shards of 10,000; design effect"]
    lines.append(
        f"{'batch':>7}{'streams':>9}{'block':>7}{'run':>7}{'shards':>8}{'held':>9}{'one batch':>11}{'ten batches':>13}"
    )
    default = DataConfig()
    for batch in (256, 4_096):
        auto = block_size_samples(default, batch)
        held = default.num_streams * auto
        layouts = [
            (default.num_streams, auto, default.run_size_samples, default.shuffle_shards),
            (default.num_streams, auto // 2, default.run_size_samples, default.shuffle_shards),
            (default.num_streams, auto, 64, default.shuffle_shards),
            (8, held // 8, 10_000, 1),  # permutes whole shards, as readers of tars do
        ]
        for streams, block, run_size, shards in layouts:
            order = SampleOrder(
                sources=(Source((10_000,) * (num_samples // 10_000)),),
                seed=0,
                global_batch_size=batch,
                num_streams=streams,
                block_size_samples=block,
                run_size_samples=run_size,
                shuffle_shards=shards,
            )
            one, ten = (design_effect(order, num_categories, together) for together in (1, 10))
            lines.append(
                f"{batch:>7,}{streams:>9}{block:>7,}{run_size:>7,}{shards:>8}{streams * block:>9,}{one:>11.2f}{ten:>13.2f}"
            )
    return "\n".join(lines)


def design_effect(order: Any, num_categories: int, together: int, batches: int = 200) -> float:
    """Design effect for samples sorted into equal categories, over groups of `together` neighbouring batches."""
    import numpy as np

    size = order.epoch_samples // num_categories
    steps = min(batches, order.steps_per_epoch) // together * together
    counts = np.stack([np.bincount(order.step_samples(0, step) // size, minlength=num_categories) for step in range(steps)])
    groups = counts.reshape(-1, together, num_categories).sum(1)
    taken = order.layout.global_batch_size * together
    expected = taken / num_categories
    variance = expected * (1 - 1 / num_categories) * (1 - taken / order.epoch_samples)  # for draws without replacement
    return float(np.square(groups - expected).mean() / variance)


def _line(side: str, results: list[dict[str, float]]) -> str:
    cpu, rate, memory = (median(one[key] for one in results) for key in ("cpu_ms", "samples_per_s", "peak_mib"))
    return f"{side:20}{cpu:>15.3f}{rate:>11,.0f}{memory:>20,.0f}"


def _compare(found: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = []
    for ours, theirs in (
        ("raw", "raw-webdataset"),
        ("raw", "raw-ray"),
        ("decoded", "decoded-webdataset"),
        ("decoded", "decoder"),
    ):
        ratios = [b["cpu_ms"] / a["cpu_ms"] for a, b in zip(found[ours], found[theirs], strict=False)]
        if ratios:
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"{ours} per CPU-second over {theirs}: {median(ratios):.2f}x ({each})")
    return lines


def _ratios(name: str, ratios: list[float]) -> list[str]:
    return [f"{name}: {median(ratios):.2f}x ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"] if ratios else []


def _first_batches(data: str, server: Server, repeats: int) -> list[str]:
    """Seconds to the first batch of a run, by the place in the epoch at which it resumes."""
    results = [_child("first", data, 0, server) for _ in range(repeats)]
    start, half, end = (median(one[key] for one in results) for key in ("0", "50", "99"))
    return [
        f"first batch after a start at 0% / 50% / 99% of an epoch: {start:.3f} / {half:.3f} / {end:.3f} s, {end / start:.2f}x"
    ]


def _child(side: str, address: str, samples: int, server: Server) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), side, address, str(samples), str(server.process.pid)]
    done = subprocess.run(command, env=server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---------------------------------------------------------------------------------------------------------- in a process


def _ours(address: str, decoded: bool, workers: int) -> Iterator[int]:
    """Yields the number of samples of each batch."""
    loader = _loader(address, workers) if decoded else None
    seen = 0
    if loader is not None:
        for batch in loader:
            yield len(batch.keys)
    from training.data.order_layout import next_step
    from training.data.prefetcher import SampleFetcher

    data_sets, order, config = _order(address)
    fetcher = SampleFetcher(data_sets, order, (0, BATCH), config, 0)
    while True:
        epoch, step = next_step(order.layout, seen)
        seen += BATCH
        yield len(fetcher.step(epoch, step)[0])


def _order(address: str) -> Any:
    from training.config import DataConfig
    from training.data.data_sets import block_size_samples, open_data_sets
    from training.data.sample_order import SampleOrder

    config = DataConfig(uri=address, prefetch_bytes=PREFETCH_BYTES)
    data_sets = open_data_sets(config)
    order = SampleOrder(
        sources=tuple(one.source for one in data_sets),
        seed=0,
        global_batch_size=BATCH,
        num_streams=config.num_streams,
        block_size_samples=block_size_samples(config, BATCH),
    )
    return data_sets, order, config


def _loader(address: str, workers: int, samples_seen: int = 0) -> Any:
    import torch

    from training.data.loader import TrainLoader
    from training.distributed import World

    data_sets, order, config = _order(address)
    world = World(0, 1, torch.device("cpu"))
    config = config.model_copy(update={"decode_workers": workers})
    return TrainLoader(data_sets, order, world, SIZE_PX, 77, config, samples_seen)


def _webdataset(tars: str, decoded: bool, workers: int) -> Iterator[int]:
    """webdataset's own pipeline with its shuffle; decoded: Pillow, torchvision's crop and uint8, the least work possible."""
    import webdataset

    paths = [f"{tars}/{path}" for path in _names(tars)]
    if tars.startswith("http"):
        paths = [f"pipe:curl -s -f {path}" for path in paths]
    data = webdataset.WebDataset(paths, shardshuffle=100, seed=0).repeat().shuffle(1_000)
    if not decoded:
        for _ in data.to_tuple("jpg", "txt"):
            yield 1
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(SIZE_PX, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC)
    both = transforms.Compose([crop, transforms.PILToTensor()])
    batches = data.decode("pilrgb").to_tuple("jpg", "txt").map_tuple(both, str).batched(BATCH)
    for images, _ in webdataset.WebLoader(batches, batch_size=None, num_workers=workers):
        yield len(images)


def _names(tars: str) -> list[str]:
    if not tars.startswith("http"):
        return sorted(path.name for path in Path(tars).glob("*.tar"))
    import boto3

    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="benchmark", Prefix="tars/")
    return sorted(item["Key"].rpartition("/")[2] for page in pages for item in page["Contents"])


def _ray_data(tars: str) -> Iterator[int]:
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    data = ray.data.read_webdataset(tars, suffixes=["jpg", "txt"], decoder=None, shuffle="files")
    while True:
        for batch in data.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=1_000):
            yield len(batch["jpg"])


def _decoder(address: str) -> Iterator[int]:
    """Runs only `load_train_image`, on the data set's first images, in memory."""
    import random

    from model.image_loading import load_train_image
    from training.data.shard_reader import ShardReader

    one = _order(address)[0][0]
    samples = ShardReader(one.storage, one.manifest).read(0, 0, SHARD_SAMPLES)
    rng = random.Random(0)
    while True:
        for sample in samples:
            load_train_image(sample.image, SIZE_PX, rng)
            yield 1


def _measure(batches: Iterator[int], samples: int, server: int) -> dict[str, float]:
    """Cost per sample after a warm-up."""
    from jobs.benchmarks.ingestion import _machine_cpu_s, _process_cpu_s

    idle = _resident_mib("VmRSS")
    seen = 0
    while seen < WARM_UP:
        seen += next(batches)
    began, machine, others, seen = time.perf_counter(), _machine_cpu_s(), _process_cpu_s(server), 0
    while seen < samples:
        seen += next(batches)
    wall_s, cpu_s = time.perf_counter() - began, _machine_cpu_s() - machine - (_process_cpu_s(server) - others)
    return {"cpu_ms": cpu_s / seen * 1e3, "samples_per_s": seen / wall_s, "peak_mib": _resident_mib("VmHWM") - idle}


def _resident_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _first_batch_s(address: str) -> dict[str, float]:
    _, order, _ = _order(address)
    seconds = {}
    for percent in (0, 50, 99):
        began = time.perf_counter()
        loader = _loader(address, 0, order.steps_per_epoch * percent // 100 * BATCH)
        next(iter(loader))
        seconds[str(percent)] = time.perf_counter() - began
        loader.close()
    return seconds


def _run_side(side: str, address: str, samples: int, server: int) -> dict[str, float]:
    import torch

    from training.data import loader  # noqa: F401 (loaded in every side's process before it is measured)

    torch.set_num_threads(1)
    workers = os.cpu_count() or 1
    sides: dict[str, Callable[[], Iterator[int]]] = {
        "raw": lambda: _ours(address, False, 0),
        "raw-webdataset": lambda: _webdataset(address, False, 0),
        "raw-ray": lambda: _ray_data(address),
        "decoded": lambda: _ours(address, True, workers),
        "decoded-webdataset": lambda: _webdataset(address, True, workers),
        "one-worker": lambda: _ours(address, True, 1),
        "decoder": lambda: _decoder(address),
    }
    if side == "first":
        _first_batch_s(address)  # the first one includes imports and a cold disk
        return _first_batch_s(address)
    return _measure(sides[side](), samples, server)


if __name__ == "__main__":
    print(json.dumps(_run_side(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
    os._exit(0)  # does not wait for readers in mid-epoch

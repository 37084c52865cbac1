"""Measures what the data loader costs beside decoding, and what it takes from the training thread.

Images decode in microseconds: a few pixels, padded behind the end of the JPEG to the size of real ones, so that reading and
hashing cost what they cost in a run. Each line is a process of its own; needs Linux and the `test` extra.

    python jobs/benchmarks/loader_cost.py ADDRESS WORKERS PAIRS RATE    one line alone; benchmark.py data-cost runs them all
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from jobs.benchmarks.stored_tars import ROOT, index

BATCH, STREAMS, BLOCK, SIZE_PX, SHARD_SAMPLES = 1_024, 32, 64, 32, 512
"""A rank of 8 takes 32 of the recipes' 256 streams; blocks are small, so that 150 kB an image fit into memory."""
SAMPLES, WARM_UP_BATCHES = 4_096, 4
COLUMNS = ("beside_decoding_us", "in_training_us", "lost_share", "read_share", "requests_per_1000")


def run(kilobytes: list[int], workers: list[int], pairs: int, rate: int, repeats: int) -> str:
    """Measures each size of image with each number of workers, in turn. Returns a table of medians."""
    head = f"{'image kB':>9}{'workers':>9}{'us beside decoding':>20}{'in training':>13}{f'lost at {rate:,}/s':>17}"
    lines = [f"{head}{'bytes read':>12}{'reads/1,000':>13}"]
    for size in kilobytes:
        with tempfile.TemporaryDirectory() as temporary:
            _write_tars(Path(temporary) / "tars", size * 1000, SAMPLES)
            index(f"{temporary}/tars", f"{temporary}/indexed")
            found: dict[int, list[dict[str, float]]] = {number: [] for number in workers}
            for _ in range(repeats):
                for number in workers:
                    found[number].append(_child(f"{temporary}/indexed", number, pairs, rate))
        for number, results in found.items():
            beside, inside, lost, read, reads = (median(one[key] for one in results) for key in COLUMNS)
            lines.append(f"{size:>9}{number:>9}{beside:>20.1f}{inside:>13.1f}{lost:>16.1%}{read:>12.2f}{reads:>13.0f}")
    return "\n".join(lines)


def _write_tars(folder: Path, image_bytes: int, samples: int) -> None:
    import webdataset
    from PIL import Image

    rng, file = random.Random(0), io.BytesIO()
    Image.effect_noise((SIZE_PX * 4 // 3, SIZE_PX), 64).convert("RGB").save(file, "JPEG", quality=95)
    folder.mkdir(parents=True)
    for first in range(0, samples, SHARD_SAMPLES):
        with webdataset.TarWriter(str(folder / f"{first // SHARD_SAMPLES:05d}.tar")) as tar:
            for number in range(first, min(samples, first + SHARD_SAMPLES)):
                image = file.getvalue() + rng.randbytes(image_bytes - len(file.getvalue()))
                caption = f"a photograph of thing number {number} in a place"
                tar.write({"__key__": f"{number:09d}", "jpg": image, "txt": caption})


def _child(address: str, workers: int, pairs: int, rate: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), address, *map(str, (workers, pairs, rate))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---------------------------------------------------------------------------------------------------------- in a process


def measure(address: str, workers: int, pairs: int, rate: int) -> dict[str, float]:
    """Returns microseconds of CPU a pair, the training thread's lost share, and bytes and reads a pair."""
    import torch

    from training.config import DataConfig
    from training.data.data_sets import open_data_sets
    from training.data.loader import TrainLoader
    from training.data.sample_order import SampleOrder
    from training.distributed import World

    torch.set_num_threads(1)
    config = DataConfig(uri=address, decode_workers=workers, prefetch_bytes=2 << 30)
    data_sets = open_data_sets(config)
    order = SampleOrder(tuple(one.source for one in data_sets), 0, BATCH, STREAMS, BLOCK)
    loader = TrainLoader(data_sets, order, World(0, 1, torch.device("cpu")), SIZE_PX, 77, config, 0)
    batches = iter(loader)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    lost = _lost_share(batches, rate, pairs / rate) - _lost_share(batches, 0, pairs / rate)  # the second: of other processes
    processes = [os.getpid(), *loader.process_ids()]
    _rest(processes)
    cpu, reads = [_process_cpu_s(one) for one in processes], _bytes_read(processes)
    for _ in range(pairs // BATCH):
        next(batches)
    _rest(processes)  # until as much is read ahead as before
    spent = [_process_cpu_s(one) - before for one, before in zip(processes, cpu, strict=True)]
    seen = pairs // BATCH * BATCH
    read, count = (now - then for now, then in zip(_bytes_read(processes), reads, strict=True))
    loader.close()
    return {
        "beside_decoding_us": sum(spent) / seen * 1e6 - _decoding_us(data_sets[0]),
        "in_training_us": spent[0] / seen * 1e6,
        "lost_share": lost,
        "read_share": read / seen / data_sets[0].mean_sample_bytes,
        "requests_per_1000": count / seen * 1e3,
    }


def _rest(processes: list[int]) -> None:
    """Waits until the loader has read ahead as far as it may."""
    before = 0.0
    while (now := sum(map(_process_cpu_s, processes))) > before + 0.01:
        before = now
        time.sleep(0.5)


def _lost_share(batches: Any, rate: int, seconds: float) -> float:
    """Returns the share of its time for which a thread waits, for Python's lock, while it takes `rate` pairs a second.

    It does small operations without end. Time in which it could have run, had there been a free core, does not count: a run has
    cores for its loader.
    """
    import torch

    number, ran, waited = torch.zeros(()), 0.0, 0.0
    due = time.perf_counter()
    stop = due + seconds
    while (now := time.perf_counter()) < stop:
        if rate and now >= due:
            next(batches)
            due += BATCH / rate
        wall, cpu, queued = time.perf_counter(), time.thread_time(), _queued_s()
        for _ in range(2_000):
            number.add_(1)
        cpu = time.thread_time() - cpu
        ran += cpu
        waited += max(0.0, time.perf_counter() - wall - cpu - (_queued_s() - queued))
    return waited / (ran + waited)


def _queued_s() -> float:
    """Returns the seconds for which this thread has waited for a core."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _decoding_us(data_set: Any) -> float:
    """Returns the CPU time of decoding one image, and of nothing else."""
    import numpy as np

    from model.image_loading import load_train_image
    from training.data.shard_reader import ShardReader

    samples = ShardReader(data_set.storage, data_set.manifest).read(0, 0, 256)
    rng, out = random.Random(0), np.empty((SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    rounds = []
    for _ in range(7):
        began = time.thread_time()
        for sample in samples:
            load_train_image(sample.image, SIZE_PX, rng, 0.9, out)
        rounds.append(time.thread_time() - began)
    return median(rounds) / len(samples) * 1e6


def _process_cpu_s(process: int) -> float:
    """Returns seconds of CPU to the microsecond, where Linux's scheduler tells; its clock ticks in hundredths."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _bytes_read(processes: list[int]) -> tuple[int, int]:
    """Returns bytes and calls of reading files, of pipes as well."""
    fields = [dict(line.split(": ") for line in Path(f"/proc/{one}/io").read_text().splitlines()) for one in processes]
    return sum(int(one["rchar"]) for one in fields), sum(int(one["syscr"]) for one in fields)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:5]))), flush=True)
    os._exit(0)  # does not wait for readers in mid-epoch

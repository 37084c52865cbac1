"""Compares jobs/embed.py on a CPU with the model's forward pass: the cost of reading, decoding and writing.

Runs in turns the forward pass alone, over the decoded batches of a data set, and the job over the same data set, each in its
own Ray worker, with the same threads, batches and precision. Also times decoding alone. Needs the `test` extra.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from jobs.benchmarks.stored_tars import SHORT_SIDE_PX, index, write_tars
from jobs.benchmarks.synthetic_data import captions


@dataclass(frozen=True)
class Setting:
    """Settings of all sides.

    Attributes:
        threads: of the model; there is one decoding thread less, but at least one.
    """

    name: str
    batch_size: int
    shards: int
    shard_samples: int
    threads: int

    @property
    def samples(self) -> int:
        return self.shards * self.shard_samples


class _Alone:
    """Runs the parts of the job separately, in a Ray worker."""

    def __init__(self, setting: Setting, address: str, state: dict[str, Any]) -> None:
        import torch

        from model.clip import build_clip
        from pipeline.dataset.manifest import read_manifest
        from pipeline.storage.address import open_storage
        from training.config import TrainConfig
        from training.data.shard_reader import ShardReader
        from training.shard_embedder import ShardEmbedder

        torch.set_num_threads(setting.threads)
        clip, data = build_clip(setting.name), open_storage(address)
        clip.load_state_dict(state)
        reader = ShardReader(data, read_manifest(data))
        self.embedder = ShardEmbedder(clip, reader, torch.device("cpu"), TrainConfig(), setting.batch_size, 1)
        starts = range(0, setting.shard_samples, setting.batch_size)
        self.places = [
            (shard, first, min(first + setting.batch_size, setting.shard_samples))
            for shard in range(setting.shards)
            for first in starts
        ]
        self.batches = [self.embedder.decode(*place) for place in self.places]
        self.embedder.forward(self.batches[0])

    def decode_s(self) -> float:
        """Seconds in which one thread reads, checks, decodes, resizes and tokenizes all batches."""
        return sum(self.embedder.decode(*place).duration_s for place in self.places)

    def forward_s(self) -> float:
        """Seconds in which the model computes all batches."""
        began = time.perf_counter()
        for batch in self.batches:
            self.embedder.forward(batch)
        return time.perf_counter() - began

    def cpu_s(self, output: str) -> tuple[float, float]:
        """CPU seconds of this process for all shards: of the forward pass, and of the whole job.

        Other load on the machine changes them little; threads that wait for each other count as busy.
        """
        from jobs.embed import embed_shard
        from pipeline.storage.address import open_storage

        began = time.process_time()
        self.forward_s()
        between = time.process_time()
        for shard in range(len(self.embedder.reader.manifest.shards)):
            embed_shard(self.embedder, open_storage(output), "float16", shard)
        return between - began, time.process_time() - between


def run(setting: Setting, repeats: int) -> str:
    """Samples per second of the forward pass, of the job and of decoding, and their ratios."""
    import torch

    from jobs.cli.command_line import connect_ray
    from model.clip import build_clip
    from training.config import ClusterConfig

    torch.manual_seed(0)
    clip = build_clip(setting.name).eval()
    rows: list[tuple[float, float, float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        write_tars(Path(temporary) / "tars", captions(setting.samples), setting.shard_samples)
        index(f"{temporary}/tars", f"{temporary}/data")
        connect_ray(ClusterConfig())
        import ray

        # Reserves no CPU, since it is idle while the job runs.
        alone: Any = cast(Any, ray.remote(num_cpus=0)(_Alone)).remote(setting, f"{temporary}/data", clip.state_dict())
        for repeat in range(repeats):
            decode_s, before_s = ray.get(alone.decode_s.remote()), ray.get(alone.forward_s.remote())
            job_s, waits = _job_s(setting, clip, f"{temporary}/data", f"{temporary}/features-{repeat}")
            after_s = ray.get(alone.forward_s.remote())
            rows.append((decode_s, (before_s + after_s) / 2, job_s, waits))
        cpu_s = [ray.get(alone.cpu_s.remote(f"{temporary}/alone-{repeat}")) for repeat in range(repeats)]
    return _report(setting, rows, cpu_s)


def _job_s(setting: Setting, clip: Any, data: str, output: str) -> tuple[float, float]:
    """(seconds from the start of the first shard to the end of the last, share of them spent in the model), one worker."""
    from jobs.cli.embed_config import EmbedConfig
    from jobs.embed import Work, embed_shards
    from pipeline.storage.address import open_storage
    from training.config import TrainConfig

    open_storage(output).check_writable()
    embed = EmbedConfig(
        data=data,
        output=output,
        batch_size=setting.batch_size,
        num_workers=1,
        cpus_per_worker=setting.threads,
        use_gpu=False,
    )
    work = Work(embed, TrainConfig(), clip.architecture, ("caption",), skip_damaged=False)
    found = list(embed_shards(work, clip, list(range(setting.shards))))
    duration_s = max(done.ended_s for done in found) - min(done.began_s for done in found)
    return duration_s, sum(done.forward_s for done in found) / duration_s


def _report(setting: Setting, rows: list[tuple[float, float, float, float]], cpu_s: list[tuple[float, float]]) -> str:
    n = setting.samples
    decode_s, forward_s, job_s, busy = (median(column) for column in zip(*rows, strict=True))
    ratios = [forward / job for _, forward, job, _ in rows]
    forward_cpu_s, all_cpu_s = (median(column) for column in zip(*cpu_s, strict=True))
    in_turn = [(forward + decode) / job for decode, forward, job, _ in rows]
    return "\n".join(
        [
            f"{setting.name}, {n:,} JPEGs of short side {SHORT_SIDE_PX} in shards of {setting.shard_samples:,}, batches of "
            f"{setting.batch_size}, one worker of {setting.threads} threads; medians of {len(rows)}",
            f"forward pass alone        {n / forward_s:10.2f} samples/s {forward_s / n * 1e3:9.3f} ms a sample",
            f"decode alone, one thread  {n / decode_s:10.2f} samples/s {decode_s / n * 1e3:9.3f} ms a sample",
            f"forward, then decode      {n / (forward_s + decode_s):10.2f} samples/s",
            f"the job, started          {n / job_s:10.2f} samples/s; the model computes {busy:.1%} of the time",
            f"the job over the forward pass alone: {median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)}); "
            f"wanted 0.85",
            f"the job over forward, then decode:   {median(in_turn):.3f} ({', '.join(f'{ratio:.3f}' for ratio in in_turn)})",
            f"CPU of a sample: {forward_cpu_s / n * 1e3:.3f} ms of the forward pass, {all_cpu_s / n * 1e3:.3f} ms of all: "
            f"{forward_cpu_s / all_cpu_s:.3f}",
        ]
    )

"""A rank's undecoded samples, step by step, read ahead of need.

In: the sample order, the data sets, this rank's slice. Out: for each step the samples in order, or what is wrong with one.
Threads read runs of neighbours, in the order in which they are needed, a bounded number of steps and bytes ahead. A rank reads
only the samples of a run that it needs, and none from before the step at which training starts or resumes.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.manifest import ManifestError
from training.config import DataConfig
from training.data.data_sets import DataSet, mean_sample_bytes
from training.data.order_layout import (
    Place,
    Span,
    block_share,
    block_steps,
    locate_sample,
    locate_samples,
    locate_shard,
    next_step,
    step_spans,
)
from training.data.range_cache import RangeCache
from training.data.sample_order import SampleOrder
from training.data.shard_reader import Damage, RawSample, ShardReader

STEPS_AHEAD = 16
"""Steps ahead for which reads are started, as far as `data.prefetch_bytes` allows."""

SUBSTITUTES_TRIED = 100
"""Candidates that are tried to replace a damaged sample."""

Sample = RawSample | Damage


@dataclass(frozen=True, order=True)
class _Read:
    """One run, or the part of it that this rank still needs. Sorts by need.

    Attributes:
        needed: the first step that takes a sample from it, counted over all epochs.
        shard, positions: the samples to read.
        indices: global indices of the samples at these positions.
    """

    needed: int
    number: int
    epoch: int
    shard: int
    positions: tuple[int, ...]
    indices: tuple[int, ...]


class SampleFetcher:
    """Reads a rank's slice of each step, in order of the steps."""

    def __init__(
        self, data_sets: Sequence[DataSet], order: SampleOrder, bounds: tuple[int, int], config: DataConfig, samples_seen: int
    ) -> None:
        """Args:
        bounds: [start, stop) of this rank's slice of a step.
        samples_seen: position at which the run starts or resumes; its step is the first one read.
        """
        self.order, self.bounds, self.config = order, bounds, config
        cache = None
        if config.cache_dir:
            wanted = {shard.tar_sha256 for one in data_sets for shard in one.manifest.shards}
            cache = RangeCache(config.cache_dir, config.cache_bytes, wanted)
        self._readers = [ShardReader(one.storage, one.manifest, config.captions, cache) for one in data_sets]
        self._mean_bytes = mean_sample_bytes(data_sets, order)
        epoch, step = next_step(order.layout, samples_seen)
        self._walked = epoch * order.steps_per_epoch + step  # the next step to open the blocks of
        self._open: dict[tuple[int, int, int], int] = {}  # (epoch, stream, block) -> its last step
        self._pending: list[_Read] = []
        self._samples: dict[tuple[int, int], tuple[Future[list[Sample]], int]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._held_bytes = 0.0
        self._under_way: dict[int, tuple[str, float]] = {}
        self._pool = ThreadPoolExecutor(config.read_threads, thread_name_prefix="read")

    def step(self, epoch: int, step: int) -> tuple[list[int], list[Sample]]:
        """Returns the global indices and the samples of a step, in order. Must be called for one step after the other."""
        now = epoch * self.order.steps_per_epoch + step
        self._read_ahead(now)
        indices = self.order.step_samples(epoch, step, *self.bounds).tolist()
        found = self._take(epoch, indices)
        self._read_ahead(now + 1)
        return indices, found

    def substitutes(self, epoch: int, index: int) -> Iterator[RawSample]:
        """Yields whole samples that may replace a damaged one, the same for any number of workers.

        Raises:
            ManifestError: none of the last `SUBSTITUTES_TRIED` candidates was whole.
        """
        damaged = 0
        for candidate in self.order.substitutes(epoch, index):
            shard, position = locate_sample(self.order.shards, candidate)
            sample = self._read(shard, (position,))[0]
            if isinstance(sample, RawSample):
                damaged = 0
                yield sample
                continue
            damaged += 1
            if damaged >= SUBSTITUTES_TRIED:
                raise ManifestError(
                    f"data.on_damage=skip: of a damaged sample's substitutes, {damaged} in a row are damaged too, the last: "
                    f"{sample.problem}; restore the data"
                )

    def address(self, index: int) -> str:
        """Returns the address of a sample's tar, for messages."""
        place = self._place(index)
        return self._readers[place.source].address(place.shard)

    def repeats(self, indices: list[int]) -> list[int]:
        """Returns how often the epoch has shown each sample before; above 0 only if its data set weighs more than 1."""
        if all(source.repeats == 1 for source in self.order.sources):
            return [0] * len(indices)
        return [self._place(index).repeat for index in indices]

    def under_way(self) -> list[tuple[str, float]]:
        """Returns (address, seconds) of the reads that are under way."""
        with self._lock:
            reads = list(self._under_way.values())
        now = time.monotonic()
        return [(address, now - since) for address, since in reads]

    def close(self, wait: bool = True) -> None:
        """Ends the threads after the reads that are under way, for which it waits or not."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    # ----------------------------------------------------------------------------------------------------------- insides

    def _place(self, index: int) -> Place:
        return locate_shard(self.order.shards, locate_sample(self.order.shards, index)[0])

    def _take(self, epoch: int, indices: list[int]) -> list[Sample]:
        """Waits for samples, hands them out, and releases their memory here."""
        found = []
        for index in indices:
            future, place = self._samples.pop((epoch, index))
            samples = future.result()
            found.append(samples[place])
            samples[place] = _TAKEN
        with self._lock:
            self._held_bytes -= sum(map(_size, found))
        return found

    def _read_ahead(self, now: int) -> None:
        """Starts the reads that are due: all that step `now` needs, and later ones within the limits."""
        while True:
            due = self._pending[0].needed if self._pending else None
            if due is not None and due < self._walked:
                with self._lock:
                    full = self._held_bytes >= self.config.prefetch_bytes
                if due > now and full:
                    return
                self._start(heapq.heappop(self._pending))
            elif self._walked <= now + STEPS_AHEAD:
                self._open_blocks(self._walked)
                self._walked += 1
            else:
                return

    def _open_blocks(self, step: int) -> None:
        """Queues the reads of the blocks that this step is the first to take from."""
        epoch, within = divmod(step, self.order.steps_per_epoch)
        for span in step_spans(self.order.layout, within, *self.bounds):
            name = (epoch, span.stream, span.block)
            if name not in self._open:
                self._open[name] = (
                    epoch * self.order.steps_per_epoch + block_steps(self.order.layout, span.stream, span.block).stop
                )
                for read in self._reads(epoch, within, span):
                    heapq.heappush(self._pending, read)
        for name in [name for name, stop in self._open.items() if stop <= step]:
            del self._open[name]

    def _reads(self, epoch: int, step: int, span: Span) -> Iterator[_Read]:
        """Yields one read for each run of a block of which this rank still needs samples."""
        order, layout = self.order, self.order.layout
        needed = np.full(layout.block_size_samples, -1, dtype=np.int64)
        for later in range(step, block_steps(layout, span.stream, span.block).stop):
            first, stop = block_share(layout, later, span.stream, span.block, *self.bounds)
            needed[first : max(first, stop)] = epoch * order.steps_per_epoch + later
        places = np.flatnonzero(needed >= 0)
        indices = order.block_samples(epoch, span.stream, span.block)[places]
        shards, positions = locate_samples(order.shards, indices)
        runs = positions // order.run_size_samples
        by_run = np.lexsort((positions, runs, shards))
        cuts = np.flatnonzero(np.diff(shards[by_run]) | np.diff(runs[by_run])) + 1
        for members in np.split(by_run, cuts):
            yield _Read(
                int(needed[places[members]].min()),
                next(self._numbers),
                epoch,
                int(shards[members[0]]),
                tuple(positions[members].tolist()),
                tuple(indices[members].tolist()),
            )

    def _start(self, read: _Read) -> None:
        estimate = self._mean_bytes * len(read.positions)
        with self._lock:
            self._held_bytes += estimate
        future = self._pool.submit(self._read_accounted, read, estimate)
        for place, index in enumerate(read.indices):
            self._samples[read.epoch, index] = (future, place)

    def _read_accounted(self, read: _Read, estimate: float) -> list[Sample]:
        """Reads, and replaces the estimated size by the true one."""
        samples = self._read(read.shard, read.positions)
        with self._lock:
            self._held_bytes += sum(map(_size, samples)) - estimate
        return samples

    def _read(self, shard: int, positions: tuple[int, ...]) -> list[Sample]:
        """Reads samples of one shard of the order, in a reading thread."""
        place = locate_shard(self.order.shards, shard)
        reader, me = self._readers[place.source], threading.get_ident()
        with self._lock:
            self._under_way[me] = (reader.address(place.shard), time.monotonic())
        try:
            first = positions[0] // self.order.run_size_samples * self.order.run_size_samples
            stop = min(first + self.order.run_size_samples, reader.manifest.shards[place.shard].num_samples)
            return reader.read_run(place.shard, positions, range(first, stop))
        finally:
            with self._lock:
                del self._under_way[me]


_TAKEN = Damage("this sample was handed out")


def _size(sample: Sample) -> int:
    return len(sample.image) if isinstance(sample, RawSample) else 0

"""A rank's undecoded samples, step by step, read ahead of need.

In: the sample order, the data sets, this rank's slice. Out: for each step the samples in order, or what is wrong with one.
Runs of neighbours are read by threads, those that are needed first first, a bounded number of steps and bytes ahead. A run is
read by the ranks that need samples of it, from the step on at which a run of training starts; nothing before that is read.
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

from training.config import DataConfig
from training.data.data_sets import DataSet, check_prefetch, mean_sample_bytes
from training.data.range_cache import RangeCache
from training.data.sample_order import SampleOrder, Span
from training.data.shard_reader import Damage, RawSample, ShardReader

STEPS_AHEAD = 16
"""Reads are started for so many steps to come, as far as `data.prefetch_bytes` allows."""

Sample = RawSample | Damage


@dataclass(frozen=True, order=True)
class _Read:
    """One run, or the part of it that this rank still needs. Ordered by need.

    Attributes:
        needed: the step that first takes from it, counted over all epochs.
        shard, positions: where to read.
        indices: global indices of the samples at these positions.
    """

    needed: int
    number: int
    epoch: int
    shard: int
    positions: tuple[int, ...]
    indices: tuple[int, ...]


class SampleFetcher:
    """Reads a rank's slice of every step, in the order of the steps."""

    def __init__(
        self, data_sets: Sequence[DataSet], order: SampleOrder, bounds: tuple[int, int], config: DataConfig, samples_seen: int
    ) -> None:
        """Args:
            bounds: [start, stop) of this rank's slice of a step.
            samples_seen: where the run goes on; its step is the first that is read.

        Raises:
            ConfigError: the order's blocks would not fit into `data.prefetch_bytes`.
        """
        self.order, self.bounds, self.config = order, bounds, config
        cache = None
        if config.cache_dir:
            wanted = {shard.tar_sha256 for one in data_sets for shard in one.manifest.shards}
            cache = RangeCache(config.cache_dir, config.cache_bytes, wanted)
        self._readers = [ShardReader(one.storage, one.manifest, config.captions, cache) for one in data_sets]
        self._mean_bytes = mean_sample_bytes(data_sets, order)
        check_prefetch(config, order, self._mean_bytes, bounds[1] - bounds[0])
        epoch, step = order.locate(samples_seen)
        self._walked = epoch * order.steps_per_epoch + step  # the next step whose blocks are opened
        self._open: dict[tuple[int, int, int], int] = {}  # (epoch, stream, block) -> its last step
        self._pending: list[_Read] = []
        self._samples: dict[tuple[int, int], tuple[Future[list[Sample]], int]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._held_bytes = 0.0
        self._under_way: dict[int, tuple[str, float]] = {}
        self._pool = ThreadPoolExecutor(config.read_threads, thread_name_prefix="read")

    def step(self, epoch: int, step: int) -> list[Sample]:
        """This rank's samples of a step, in order. Steps are asked for one after the other."""
        now = epoch * self.order.steps_per_epoch + step
        self._read_ahead(now)
        found = [self._take(epoch, index) for index in self.order.step_samples(epoch, step, *self.bounds).tolist()]
        self._read_ahead(now + 1)
        return found

    def substitutes(self, epoch: int, index: int) -> Iterator[RawSample]:
        """Whole samples in place of one that is not, the same for any number of workers."""
        for candidate in self.order.substitutes(epoch, index):
            shard, position = self.order.locate_sample(candidate)
            sample = self._read(shard, (position,))[0]
            if isinstance(sample, RawSample):
                yield sample

    def address(self, index: int) -> str:
        """Where a sample lies, for people."""
        place = self.order.place(self.order.locate_sample(index)[0])
        return self._readers[place.source].address(place.shard)

    def repeat(self, index: int) -> int:
        """How often the epoch has shown the sample before: more than 0 where a data set weighs more than 1."""
        return self.order.place(self.order.locate_sample(index)[0]).repeat

    def under_way(self) -> str:
        """The reads that last longest, for a report of a stall."""
        with self._lock:
            oldest = sorted(self._under_way.values(), key=lambda read: read[1])[:3]
        now = time.monotonic()
        return ", ".join(f"{address} for {now - since:.0f} s" for address, since in oldest) or "no read is under way"

    def close(self) -> None:
        """Ends the threads; reads that are under way are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ----------------------------------------------------------------------------------------------------------- insides

    def _take(self, epoch: int, index: int) -> Sample:
        """A sample, waited for, and forgotten here."""
        future, place = self._samples.pop((epoch, index))
        samples = future.result()
        sample = samples[place]
        samples[place] = _TAKEN
        with self._lock:
            self._held_bytes -= _size(sample)
        return sample

    def _read_ahead(self, now: int) -> None:
        """Starts the reads that are due: those that step `now` needs in any case, later ones within the limits."""
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
        """Queues the reads of blocks that a step is the first to take from."""
        epoch, within = divmod(step, self.order.steps_per_epoch)
        for span in self.order.step_spans(within, *self.bounds):
            name = (epoch, span.stream, span.block)
            if name not in self._open:
                self._open[name] = epoch * self.order.steps_per_epoch + self.order.block_steps(span).stop
                for read in self._reads(epoch, within, span):
                    heapq.heappush(self._pending, read)
        for name in [name for name, stop in self._open.items() if stop <= step]:
            del self._open[name]

    def _reads(self, epoch: int, step: int, span: Span) -> Iterator[_Read]:
        """What this rank still needs of a block, by runs."""
        order = self.order
        needed = np.full(order.block_size_samples, -1, dtype=np.int64)
        for later in range(step, order.block_steps(span).stop):
            first, stop = order.block_span(later, span.stream, span.block, *self.bounds)
            needed[first : max(first, stop)] = epoch * order.steps_per_epoch + later
        places = np.flatnonzero(needed >= 0)
        indices = order.block_samples(epoch, span.stream, span.block)[places]
        shards, positions = order.locate_samples(indices)
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
        """The samples of a read, whose true size takes the place of its estimate."""
        samples = self._read(read.shard, read.positions)
        with self._lock:
            self._held_bytes += sum(map(_size, samples)) - estimate
        return samples

    def _read(self, shard: int, positions: tuple[int, ...]) -> list[Sample]:
        """Samples of one shard of the order; the call that a reading thread makes."""
        place = self.order.place(shard)
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

"""The order in which samples are trained on: a pure function of (manifests, seed, epoch, step).

In: the sample counts of the shards of one data set, or of several with weights. Out: for any step, the global indices of its
samples, in order. Nothing here depends on the number of workers: rank r of W takes a contiguous slice of the step
(`training.distributed.slice_bounds`), so any number of workers sees the same batches, and a resume needs one number, the
samples seen.

An epoch is laid out as follows (docs/decisions/0005-sample-order.md):
    1. permute the shards over all data sets and lay them end to end
    2. permute runs of `run_size_samples` neighbours within each group of `shuffle_shards` shards
    3. cut this sequence into `num_streams` streams of equal length; the rest is skipped in this epoch
    4. shuffle every stream within blocks of `block_size_samples`; the blocks of different streams end at different steps
    5. a step takes the next samples of every stream in turn, sorted by stream

Here are the permutations (1, 2 and 4); the arithmetic (3 and 5) is in training/data/order_layout.py.

A run is the unit of reading, so reading stays sequential within it. A rank's slice touches about num_streams / W of the
streams, and ranks read no blocks in common if W divides num_streams. Mixing grows with the number of samples held in blocks,
num_streams * block_size_samples, over the size of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from training.data.order_layout import Indices, Layout, ShardTable, Source, block_bounds, number_shards, step_spans

VERSION, VERSIONS = 3, (2, 3)
"""Version of the layout, part of the order's identity, and those that runs may still resume by. In version 2, a
shard of which an epoch took a part showed its first samples in each epoch."""
_SHARDS, _PART, _RUNS, _BLOCK, _SUBSTITUTE = range(1, 6)
"""Purposes of random numbers: each has a generator of its own."""


class Pieces(NamedTuple):
    """Parts of shards laid end to end, one entry each.

    Attributes:
        starts: position of each piece in the epoch's sequence.
        shard: number of its shard (`ShardTable`).
        first: its first sample in that shard.
        length: samples.
    """

    starts: Indices
    shard: Indices
    first: Indices
    length: Indices


class SampleOrder:
    """The order of one run. A sample's global index counts over all sources and their repeats.

    Immutable apart from a cache of recent permutations.
    """

    def __init__(
        self,
        sources: tuple[Source, ...],
        seed: int,
        global_batch_size: int,
        num_streams: int,
        block_size_samples: int,
        run_size_samples: int = 16,
        shuffle_shards: int = 16,
        version: int = VERSION,
    ) -> None:
        """Raises ConfigError if an epoch would not hold one global batch."""
        self.sources, self.seed, self.version = sources, seed, version
        self.run_size_samples, self.shuffle_shards = run_size_samples, shuffle_shards
        epoch_samples = sum(source.epoch_samples for source in sources)
        self.layout = Layout(epoch_samples, global_batch_size, num_streams, block_size_samples)
        self.shards = number_shards(sources)
        self._epoch_shards = lru_cache(maxsize=4)(partial(permute_shards, sources, self.shards, seed, version))
        self._group_runs = lru_cache(maxsize=num_streams + 16)(self._permute_group)
        self.block_samples = lru_cache(maxsize=2 * num_streams + 16)(self._permute_block)
        """(epoch, stream, block) -> the block's global indices in shuffled order."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Is sent to other processes without its cache."""
        sizes = (self.layout.global_batch_size, self.layout.num_streams, self.layout.block_size_samples)
        return SampleOrder, (self.sources, self.seed, *sizes, self.run_size_samples, self.shuffle_shards, self.version)

    @property
    def epoch_samples(self) -> int:
        return self.layout.epoch_samples

    @property
    def steps_per_epoch(self) -> int:
        return self.layout.steps_per_epoch

    @property
    def remainder(self) -> int:
        return self.layout.remainder

    def identity(self) -> dict[str, Any]:
        """Returns everything besides the manifests that two runs must share to see the same samples in the same order."""
        return {
            "version": self.version,
            "seed": self.seed,
            "global_batch_size": self.layout.global_batch_size,
            "num_streams": self.layout.num_streams,
            "block_size_samples": self.layout.block_size_samples,
            "run_size_samples": self.run_size_samples,
            "shuffle_shards": self.shuffle_shards,
            "weights": [source.weight for source in self.sources],
        }

    def step_samples(self, epoch: int, step: int, start: int = 0, stop: int | None = None) -> Indices:
        """Returns the global indices of the samples at positions [start, stop) of a step, in order."""
        spans = step_spans(self.layout, step, start, stop)
        return np.concatenate([self.block_samples(epoch, span.stream, span.block)[span.first : span.stop] for span in spans])

    def block_pieces(self, epoch: int, stream: int, block: int) -> Pieces:
        """Returns what lies in a block before it is shuffled: runs, or parts of them."""
        begin = stream * self.layout.stream_length
        first, stop = block_bounds(self.layout, stream, block)
        starts = self._epoch_shards(epoch).starts
        # Of each group of shards that the block touches, its runs.
        places = np.searchsorted(starts, [begin + first, begin + stop - 1], side="right") - 1
        groups = range(places[0] // self.shuffle_shards, places[1] // self.shuffle_shards + 1)
        runs = [self._group_runs(epoch, group) for group in groups]
        return cut_pieces(Pieces(*map(np.concatenate, zip(*runs, strict=True))), begin + first, begin + stop)

    def substitutes(self, epoch: int, index: int) -> Iterator[int]:
        """Yields samples that may replace an unreadable one, one after the other, without end."""
        rng = _rng(self.seed, epoch, _SUBSTITUTE, index)
        while True:
            yield int(rng.integers(self.shards.num_samples))

    def _permute_group(self, epoch: int, group: int) -> Pieces:
        members = slice(group * self.shuffle_shards, (group + 1) * self.shuffle_shards)
        shards = Pieces(*(column[members] for column in self._epoch_shards(epoch)))
        return permute_runs(shards, self.run_size_samples, _rng(self.seed, epoch, _RUNS, group))

    def _permute_block(self, epoch: int, stream: int, block: int) -> Indices:
        pieces = self.block_pieces(epoch, stream, block)
        return permute_samples(pieces, self.shards, _rng(self.seed, epoch, _BLOCK, stream, block))


def permute_shards(sources: Sequence[Source], table: ShardTable, seed: int, version: int, epoch: int) -> Pieces:
    """Returns an epoch's shards in random order, end to end; of a data set's last repeat, a random part (step 1 above)."""
    parts = [_draw_shards(source, number, table, seed, version, epoch) for number, source in enumerate(sources)]
    drawn = np.concatenate(parts, axis=1)
    drawn = drawn[:, drawn[2] > 0]
    return _end_to_end(0, *drawn[:, _rng(seed, epoch, _SHARDS).permutation(drawn.shape[1])])


def _draw_shards(source: Source, number: int, table: ShardTable, seed: int, version: int, epoch: int) -> Indices:
    """Returns shards of a source, the first sample to take of each, and their number, one row each.

    All of its whole repeats, and of the last a random part: the shards in random order form a circle, and the part is an arc of
    it. So each sample is as likely as any other.
    """
    rng = _rng(seed, epoch, _PART, number)
    shards = np.arange(table.source_starts[number], table.source_starts[number + 1])
    whole, last = np.split(shards, [len(shards) - len(source.shard_counts)])
    last = rng.permutation(last)
    counts = table.counts[last]
    total, part = counts.sum(), source.epoch_samples - table.counts[whole].sum()
    start = rng.integers(total) if version > 2 and part < total else 0
    begins = np.concatenate([np.cumsum(counts) - counts, np.cumsum(counts) - counts + total])  # twice around
    last, counts = np.tile(last, 2), np.tile(counts, 2)
    first, stop = (np.clip(end - begins, 0, counts) for end in (start, start + part))
    return np.column_stack([(whole, np.zeros_like(whole), table.counts[whole]), (last, first, stop - first)])


def permute_runs(shards: Pieces, run_size_samples: int, rng: np.random.Generator) -> Pieces:
    """Cuts a group of shards into runs of neighbours and permutes these within the group (step 2)."""
    runs = -(-shards.length // run_size_samples)
    shard, begin, length = (np.repeat(column, runs) for column in (shards.shard, shards.first, shards.length))
    first = np.concatenate([np.arange(number) * run_size_samples for number in runs])
    count = np.minimum(run_size_samples, length - first)
    permutation = rng.permutation(len(shard))
    return _end_to_end(int(shards.starts[0]), shard[permutation], (begin + first)[permutation], count[permutation])


def cut_pieces(pieces: Pieces, first: int, stop: int) -> Pieces:
    """Cuts [first, stop) out of pieces that lie end to end and cover it."""
    begin, end = np.searchsorted(pieces.starts, [first, stop - 1], side="right") - [1, 0]
    covering = Pieces(*(column[begin:end] for column in pieces))
    low = np.maximum(covering.starts, first)
    high = np.minimum(covering.starts + covering.length, stop)
    return Pieces(low, covering.shard, covering.first + low - covering.starts, high - low)


def permute_samples(pieces: Pieces, table: ShardTable, rng: np.random.Generator) -> Indices:
    """Returns the global indices of all samples of a block in random order (step 4)."""
    begins = table.starts[pieces.shard] + pieces.first
    indices = [np.arange(begin, begin + length) for begin, length in zip(begins, pieces.length, strict=True)]
    return rng.permutation(np.concatenate(indices))


def _end_to_end(begin: int, shard: Indices, first: Indices, length: Indices) -> Pieces:
    return Pieces(begin + np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64), shard, first, length)


def _rng(seed: int, epoch: int, purpose: int, *numbers: int) -> np.random.Generator:
    """Returns a generator that depends on these numbers alone, the same on every platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, purpose, *numbers))))

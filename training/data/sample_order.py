"""The order in which samples are trained on: a pure function of (manifests, seed, epoch, step).

In: the sample counts of the shards of one data set, or of several with weights. Out: for any step, the global indices of its
samples, in order. Nothing here knows how many workers there are: rank r of W takes a contiguous slice of the step
(`training.distributed.slice_bounds`), so any number of workers sees the same batches, and a resume is one number, the samples
seen.

How an epoch is laid out (docs/decisions/0005-sample-order.md):
    1. the shards are permuted over everything and laid end to end
    2. in each group of `shuffle_shards` of them, runs of `run_size_samples` neighbours are permuted
    3. this sequence is cut into `num_streams` streams of equal length (what does not divide is left out of this epoch)
    4. every stream is shuffled within blocks of `block_size_samples`; the blocks of different streams end at different steps
    5. a step takes the next samples of every stream, in turn; within the step they are sorted by stream

A run is what is read at a time, so reading stays sequential within it. A rank's slice touches about num_streams / W of the
streams, and ranks read no blocks in common while W divides num_streams. Mixing grows with the samples that are held,
num_streams * block_size_samples, over the size of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Indices = NDArray[np.int64]

VERSION = 2
"""Of the layout; part of the order's identity."""
_SHARDS, _PART, _RUNS, _BLOCK, _SUBSTITUTE = range(1, 6)
"""What a random number is drawn for."""


@dataclass(frozen=True)
class Source:
    """One data set's part of an epoch.

    Attributes:
        shard_counts: samples of its shards, in manifest order.
        weight: how often an epoch shows it: 1 once, 2.5 twice and another half of it, 0.1 a tenth.
    """

    shard_counts: tuple[int, ...]
    weight: float = 1.0

    @property
    def num_samples(self) -> int:
        return sum(self.shard_counts)

    @property
    def epoch_samples(self) -> int:
        return int(self.num_samples * self.weight)

    @property
    def repeats(self) -> int:
        """Copies of the data set that an epoch draws from; of the last one it may take a part."""
        return max(1, -int(-self.weight // 1))


class Place(NamedTuple):
    """A shard of a source; `repeat` counts its appearances in an epoch from 0."""

    source: int
    repeat: int
    shard: int


class Span(NamedTuple):
    """Neighbours of a step: places [first, stop) of a block, in the order in which the block gives them out."""

    stream: int
    block: int
    first: int
    stop: int


class Piece(NamedTuple):
    """Neighbouring samples [first, stop) of one shard. `shard` counts over all sources and their repeats."""

    shard: int
    first: int
    stop: int


class _Sequence(NamedTuple):
    """Pieces laid end to end: where each begins, its shard and its first sample in that shard. One entry a piece."""

    starts: Indices
    shard: Indices
    first: Indices
    length: Indices


@dataclass(frozen=True)
class SampleOrder:
    """The order under one seed. A sample's global index counts over all sources and their repeats.

    Raises:
        ConfigError: an epoch would not hold one global batch.
    """

    sources: tuple[Source, ...]
    seed: int
    global_batch_size: int
    num_streams: int
    block_size_samples: int
    run_size_samples: int = 16
    shuffle_shards: int = 16

    def __post_init__(self) -> None:
        if self.epoch_samples == 0:
            raise ConfigError("data.uri: the data set holds no samples; ingest some first, or raise the weights of a mixture")
        if self.stream_length * self.num_streams < self.global_batch_size:
            raise ConfigError(
                f"train.global_batch_size={self.global_batch_size} is more than the data set's {self.epoch_samples} samples "
                f"in {self.num_streams} equal streams: an epoch must hold at least one batch; use "
                f"{self.stream_length * self.num_streams or self.epoch_samples} or less, or a larger data set"
            )

    @cached_property
    def epoch_samples(self) -> int:
        """Samples that an epoch is made of, repeats included."""
        return sum(source.epoch_samples for source in self.sources)

    @cached_property
    def stream_length(self) -> int:
        return self.epoch_samples // self.num_streams

    @cached_property
    def steps_per_epoch(self) -> int:
        return self.stream_length * self.num_streams // self.global_batch_size

    @cached_property
    def remainder(self) -> int:
        """Samples that an epoch does not show; which ones differs from epoch to epoch."""
        return self.epoch_samples - self.steps_per_epoch * self.global_batch_size

    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to see the same samples in the same order, besides the manifests."""
        return {
            "version": VERSION,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "num_streams": self.num_streams,
            "block_size_samples": self.block_size_samples,
            "run_size_samples": self.run_size_samples,
            "shuffle_shards": self.shuffle_shards,
            "weights": [source.weight for source in self.sources],
        }

    def locate(self, samples_seen: int) -> tuple[int, int]:
        """(epoch, step within it) that comes next after so many samples."""
        steps, rest = divmod(samples_seen, self.global_batch_size)
        if rest:
            raise ConfigError(
                f"samples_seen={samples_seen}: a run stops between steps, so it is a multiple of train.global_batch_size="
                f"{self.global_batch_size}; resume with the batch size that the checkpoint was written with"
            )
        return divmod(steps, self.steps_per_epoch)

    # ------------------------------------------------------------------------------------------------------------ a step

    def step_spans(self, step: int, start: int = 0, stop: int | None = None) -> Iterator[Span]:
        """Where positions [start, stop) of a step come from, in order; the same in every epoch."""
        stop = self.global_batch_size if stop is None else stop
        stream = self._stream_at(step, start)
        while start < stop:
            first, end = self._before(step, stream), self._before(step, stream + 1)
            offset = self._taken(step, stream) + start - first
            yield from self._cut(stream, offset, offset + min(end, stop) - start)
            start, stream = min(end, stop), stream + 1

    def step_samples(self, epoch: int, step: int, start: int = 0, stop: int | None = None) -> Indices:
        """The samples at positions [start, stop) of a step as global indices, in order."""
        parts = [
            self.block_samples(epoch, span.stream, span.block)[span.first : span.stop]
            for span in self.step_spans(step, start, stop)
        ]
        return np.concatenate(parts)

    def block_steps(self, span: Span) -> range:
        """The steps that take from the block of a span; the last may lie beyond the epoch's."""
        first, stop = self._block_range(span.stream, span.block)
        # Offset o of a stream is position o * num_streams + stream of the epoch.
        steps = [(offset * self.num_streams + span.stream) // self.global_batch_size for offset in (first, stop - 1)]
        return range(steps[0], min(steps[1] + 1, self.steps_per_epoch))

    def block_span(self, step: int, stream: int, block: int, start: int, stop: int) -> tuple[int, int]:
        """Places [first, stop) of a block that positions [start, stop) of a step take; empty where they take none."""
        first, end = self._before(step, stream), self._before(step, stream + 1)
        low, high = max(start, first), min(stop, end)
        offset, (begin, finish) = self._taken(step, stream) - first, self._block_range(stream, block)
        return max(offset + low, begin) - begin, min(offset + high, finish) - begin

    def block_samples(self, epoch: int, stream: int, block: int) -> Indices:
        """A block's global indices in the order in which it gives them out."""
        return self._block_samples(epoch, stream, block)

    def block_pieces(self, epoch: int, stream: int, block: int) -> list[Piece]:
        """What lies in a block, before its shuffle: at most one piece a run."""
        base = stream * self.stream_length
        first, stop = self._block_range(stream, block)
        return list(self._pieces(epoch, base + first, base + stop))

    # ---------------------------------------------------------------------------------------------- indices and shards

    def first_of_shard(self, shard: int) -> int:
        """The global index of a shard's first sample."""
        return int(self._shard_starts[shard])

    def locate_sample(self, index: int) -> tuple[int, int]:
        """(shard, sample within it) of a global index."""
        shard = int(np.searchsorted(self._shard_starts, index, side="right")) - 1
        return shard, index - self.first_of_shard(shard)

    def locate_samples(self, indices: Indices) -> tuple[Indices, Indices]:
        """(shards, samples within them) of many global indices."""
        shards = np.searchsorted(self._shard_starts, indices, side="right") - 1
        return shards, indices - self._shard_starts[shards]

    def place(self, shard: int) -> Place:
        """Which shard of which source it is."""
        source = int(np.searchsorted(self._source_starts, shard, side="right")) - 1
        repeat, within = divmod(shard - int(self._source_starts[source]), len(self.sources[source].shard_counts))
        return Place(source, repeat, within)

    def substitutes(self, epoch: int, index: int) -> Iterator[int]:
        """Samples to take, one after the other, in place of one that cannot be read. Without end."""
        rng = _rng(self.seed, epoch, _SUBSTITUTE, index)
        total = int(self._shard_starts[-1])
        while True:
            yield int(rng.integers(total))

    # ----------------------------------------------------------------------------------------------------------- insides

    @cached_property
    def _counts(self) -> Indices:
        """Of all shards, over sources and repeats."""
        return np.concatenate([np.tile(np.asarray(one.shard_counts, dtype=np.int64), one.repeats) for one in self.sources])

    @cached_property
    def _shard_starts(self) -> Indices:
        return np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)

    @cached_property
    def _source_starts(self) -> Indices:
        """The first shard of each source."""
        return np.cumsum([0, *(len(one.shard_counts) * one.repeats for one in self.sources)])

    def _before(self, step: int, stream: int) -> int:
        """How many of a step's samples come from streams before this one."""
        begin = step * self.global_batch_size
        return self._positions(begin + self.global_batch_size, stream) - self._positions(begin, stream)

    def _positions(self, stop: int, stream: int) -> int:
        """How many of the epoch's positions before `stop` belong to streams before this one."""
        turns, rest = divmod(stop, self.num_streams)
        return turns * stream + min(rest, stream)

    def _taken(self, step: int, stream: int) -> int:
        """How many samples of a stream earlier steps have taken."""
        return -((stream - step * self.global_batch_size) // self.num_streams)

    def _stream_at(self, step: int, position: int) -> int:
        """The stream that a position of a step falls into."""
        low, high = 0, self.num_streams
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(step, middle) <= position else (low, middle)
        return low

    def _lead(self, stream: int) -> int:
        """By how much a stream's first block is shorter than the others, so that not all streams change block at once."""
        return self.block_size_samples * (self.num_streams - 1 - stream) // self.num_streams

    def _cut(self, stream: int, offset: int, stop: int) -> Iterator[Span]:
        """Offsets [offset, stop) of a stream as spans of its blocks."""
        while offset < stop:
            block = (offset + self._lead(stream)) // self.block_size_samples
            first, end = self._block_range(stream, block)
            yield Span(stream, block, offset - first, min(stop, end) - first)
            offset = min(stop, end)

    def _block_range(self, stream: int, block: int) -> tuple[int, int]:
        """[first, stop) of a block as offsets in its stream."""
        first = block * self.block_size_samples - self._lead(stream)
        return max(0, first), min(first + self.block_size_samples, self.stream_length)

    @cached_property
    def _block_samples(self) -> Callable[[int, int, int], Indices]:
        return lru_cache(maxsize=2 * self.num_streams + 16)(self._permute_block)

    def _permute_block(self, epoch: int, stream: int, block: int) -> Indices:
        runs = [
            np.arange(piece.first, piece.stop) + self.first_of_shard(piece.shard)
            for piece in self.block_pieces(epoch, stream, block)
        ]
        return _rng(self.seed, epoch, _BLOCK, stream, block).permutation(np.concatenate(runs))

    def _pieces(self, epoch: int, first: int, stop: int) -> Iterator[Piece]:
        """The runs, or parts of them, under [first, stop) of the epoch's sequence."""
        starts = self._shard_sequence(epoch).starts
        while first < stop:
            group = (int(np.searchsorted(starts, first, side="right")) - 1) // self.shuffle_shards
            runs = self._group_runs(epoch, group)
            at = int(np.searchsorted(runs.starts, first, side="right")) - 1
            while first < stop and at < len(runs.starts):
                skip, count = first - int(runs.starts[at]), int(runs.length[at])
                length = min(stop - first, count - skip)
                begin = int(runs.first[at]) + skip
                yield Piece(int(runs.shard[at]), begin, begin + length)
                first, at = first + length, at + 1

    @cached_property
    def _shard_sequence(self) -> Callable[[int], _Sequence]:
        """epoch -> its shards, or parts of them, end to end."""
        return lru_cache(maxsize=4)(self._permute_shards)

    def _permute_shards(self, epoch: int) -> _Sequence:
        parts = [self._epoch_shards(epoch, number) for number in range(len(self.sources))]
        shard, count = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
        shard, count = shard[count > 0], count[count > 0]
        permutation = _rng(self.seed, epoch, _SHARDS).permutation(len(shard))
        return _end_to_end(0, shard[permutation], np.zeros(len(shard), dtype=np.int64), count[permutation])

    def _epoch_shards(self, epoch: int, number: int) -> tuple[Indices, Indices]:
        """(shards of a source, samples to take of each): all of its whole repeats, a random part of the last."""
        source, first = self.sources[number], int(self._source_starts[number])
        shards = np.arange(first, first + len(source.shard_counts) * source.repeats)
        last = np.arange(len(shards) - len(source.shard_counts), len(shards))
        shards[last] = _rng(self.seed, epoch, _PART, number).permutation(shards[last])
        counts = self._counts[shards]
        left = np.maximum(source.epoch_samples - (np.cumsum(counts) - counts), 0)
        return shards, np.minimum(counts, left)

    @cached_property
    def _group_runs(self) -> Callable[[int, int], _Sequence]:
        """(epoch, group) -> the group's runs, end to end in their order."""
        return lru_cache(maxsize=self.num_streams + 16)(self._permute_runs)

    def _permute_runs(self, epoch: int, group: int) -> _Sequence:
        shards, size = self._shard_sequence(epoch), self.run_size_samples
        members = slice(group * self.shuffle_shards, (group + 1) * self.shuffle_shards)
        runs = -(-shards.length[members] // size)
        shard, length = np.repeat(shards.shard[members], runs), np.repeat(shards.length[members], runs)
        first = np.concatenate([np.arange(number) * size for number in runs])
        permutation = _rng(self.seed, epoch, _RUNS, group).permutation(len(shard))
        count = np.minimum(size, length - first)
        return _end_to_end(int(shards.starts[members][0]), shard[permutation], first[permutation], count[permutation])


def _end_to_end(begin: int, shard: Indices, first: Indices, count: Indices) -> _Sequence:
    return _Sequence(begin + np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64), shard, first, count)


def _rng(seed: int, epoch: int, purpose: int, *numbers: int) -> np.random.Generator:
    """A generator that depends on these numbers alone, the same on every platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, purpose, *numbers))))

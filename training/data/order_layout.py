"""The layout of an epoch: which streams and blocks a step takes its samples from, and how shards and samples are numbered.

In: the sample counts of the shards, and the sizes in `data.*` and `train.global_batch_size`. Out: positions, offsets and
indices. Nothing here is random: training/data/sample_order.py says which samples lie at these places, and why.

The positions of an epoch are dealt to its streams in turn: position p belongs to stream p % num_streams, at offset
p // num_streams. A step takes global_batch_size consecutive positions and sorts them by stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Indices = NDArray[np.int64]
LEAST_BATCH = 2
"""Samples of the smallest batch: a contrastive loss compares."""


@dataclass(frozen=True)
class Source:
    """One data set's part of an epoch.

    Attributes:
        shard_counts: samples of its shards, in manifest order.
        weight: how often an epoch shows it: 1 once, 2.5 twice plus half of it again, 0.1 a tenth of it.
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
        """Copies of the data set that an epoch draws from; it may take only a part of the last one."""
        return max(1, -int(-self.weight // 1))


# ----------------------------------------------------------------------------------------------- streams, blocks and steps


@dataclass(frozen=True)
class Layout:
    """The sizes that decide where each position of a step comes from.

    Attributes:
        epoch_samples: samples in an epoch, repeats included.

    Raises:
        ConfigError: an epoch would not hold one global batch.
    """

    epoch_samples: int
    global_batch_size: int
    num_streams: int
    block_size_samples: int

    def __post_init__(self) -> None:
        if self.epoch_samples == 0:
            raise ConfigError("data.uri: the data set holds no samples; ingest some first, or raise the weights of a mixture")
        if self.stream_length * self.num_streams < self.global_batch_size:
            raise ConfigError(
                f"train.global_batch_size={self.global_batch_size}: an epoch must hold at least one batch. "
                f"{self._samples_of_an_epoch()}; {self._remedy()}"
            )

    def _samples_of_an_epoch(self) -> str:
        text = f"The data set has {self.epoch_samples} samples"
        if self.epoch_samples < self.global_batch_size:
            return text
        return f"{text}, of which {self.num_streams} equal streams take {self.stream_length * self.num_streams}"

    def _remedy(self) -> str:
        if self.epoch_samples >= self.global_batch_size:
            return "use fewer streams (data.num_streams)"
        if self.epoch_samples < LEAST_BATCH:
            return f"use a larger data set, since a batch has at least {LEAST_BATCH} samples"
        return f"use {self.epoch_samples} or less, or a larger data set"

    @property
    def stream_length(self) -> int:
        return self.epoch_samples // self.num_streams

    @property
    def steps_per_epoch(self) -> int:
        return self.stream_length * self.num_streams // self.global_batch_size

    @property
    def remainder(self) -> int:
        """Samples that an epoch does not show; they differ from epoch to epoch."""
        return self.epoch_samples - self.steps_per_epoch * self.global_batch_size


def fit_batch_size(epoch_samples: int, global_batch_size: int, min_steps: int) -> int:
    """Returns the batch size, halved until an epoch has at least so many steps; not below 2."""
    while global_batch_size >= 4 and epoch_samples // global_batch_size < min_steps:
        global_batch_size //= 2
    return global_batch_size


def fit_num_streams(epoch_samples: int, global_batch_size: int, num_streams: int) -> int:
    """Returns the largest number of streams, up to `num_streams`, with which an epoch skips less than a batch.

    Streams have equal lengths, so a small data set in many streams would lose up to a sample of each: of 96 samples in 64
    streams, 32. One stream loses none.
    """
    steps = epoch_samples // global_batch_size
    fitting = (
        number
        for number in range(min(num_streams, epoch_samples), 1, -1)
        if epoch_samples // number * number // global_batch_size == steps
    )
    return next(fitting, 1)


class Span(NamedTuple):
    """Consecutive samples of a step: places [first, stop) in the shuffled block."""

    stream: int
    block: int
    first: int
    stop: int


def next_step(layout: Layout, samples_seen: int) -> tuple[int, int]:
    """Returns (epoch, step within it) of the first step that a run which has seen so many samples has not done.

    Raises:
        ConfigError: `samples_seen` lies between two steps.
    """
    steps, rest = divmod(samples_seen, layout.global_batch_size)
    if rest:
        raise ConfigError(
            f"samples_seen={samples_seen}: a run stops between steps, so it is a multiple of train.global_batch_size="
            f"{layout.global_batch_size}; resume with the batch size that the checkpoint was written with"
        )
    return divmod(steps, layout.steps_per_epoch)


def step_spans(layout: Layout, step: int, start: int = 0, stop: int | None = None) -> Iterator[Span]:
    """Yields where positions [start, stop) of a step come from, in order; the same in every epoch."""
    stop = layout.global_batch_size if stop is None else stop
    stream = _stream_at(layout, step, start)
    while start < stop:
        first, end = _stream_share(layout, step, stream)
        offset = _first_offset(layout, step, stream) + start - first
        yield from _cut_into_blocks(layout, stream, offset, offset + min(end, stop) - start)
        start, stream = min(end, stop), stream + 1


def block_bounds(layout: Layout, stream: int, block: int) -> tuple[int, int]:
    """Returns [first, stop) of a block as offsets in its stream."""
    first = block * layout.block_size_samples - _shortening(layout, stream)
    return max(0, first), min(first + layout.block_size_samples, layout.stream_length)


def block_steps(layout: Layout, stream: int, block: int) -> range:
    """Returns the steps that take samples from a block; none of them lies beyond the epoch."""
    first, stop = block_bounds(layout, stream, block)
    steps = [(offset * layout.num_streams + stream) // layout.global_batch_size for offset in (first, stop - 1)]
    return range(steps[0], min(steps[1] + 1, layout.steps_per_epoch))


def block_share(layout: Layout, step: int, stream: int, block: int, start: int, stop: int) -> tuple[int, int]:
    """Returns the places [first, stop) of a block that positions [start, stop) of a step take; first >= stop if none."""
    first, end = _stream_share(layout, step, stream)
    low, high = max(start, first), min(stop, end)
    offset, (begin, finish) = _first_offset(layout, step, stream) - first, block_bounds(layout, stream, block)
    return max(offset + low, begin) - begin, min(offset + high, finish) - begin


def _stream_share(layout: Layout, step: int, stream: int) -> tuple[int, int]:
    """Returns the positions [first, stop) of a step that a stream fills."""
    return _before_stream(layout, step, stream), _before_stream(layout, step, stream + 1)


def _before_stream(layout: Layout, step: int, stream: int) -> int:
    """Counts the samples of a step that come from earlier streams."""

    def dealt(stop: int) -> int:
        """Counts the positions of the epoch before `stop` that belong to earlier streams."""
        turns, rest = divmod(stop, layout.num_streams)
        return turns * stream + min(rest, stream)

    begin = step * layout.global_batch_size
    return dealt(begin + layout.global_batch_size) - dealt(begin)


def _first_offset(layout: Layout, step: int, stream: int) -> int:
    """Counts the samples of a stream that earlier steps have taken."""
    return -((stream - step * layout.global_batch_size) // layout.num_streams)


def _stream_at(layout: Layout, step: int, position: int) -> int:
    """Finds the stream that fills a position of a step, by bisection."""
    low, high = 0, layout.num_streams
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _before_stream(layout, step, middle) <= position else (low, middle)
    return low


def _shortening(layout: Layout, stream: int) -> int:
    """Returns what a stream's first block lacks to the full size; it differs, so streams change blocks at different steps."""
    return layout.block_size_samples * (layout.num_streams - 1 - stream) // layout.num_streams


def _cut_into_blocks(layout: Layout, stream: int, offset: int, stop: int) -> Iterator[Span]:
    while offset < stop:
        block = (offset + _shortening(layout, stream)) // layout.block_size_samples
        first, end = block_bounds(layout, stream, block)
        yield Span(stream, block, offset - first, min(stop, end) - first)
        offset = min(stop, end)


# -------------------------------------------------------------------------------------------------- shards and sample indices


@dataclass(frozen=True, eq=False)
class ShardTable:
    """The shards that an epoch may draw from, numbered over all sources and their repeats.

    Attributes:
        counts: samples of each shard.
        starts: the global index of each shard's first sample, and last the number of all samples.
        source_starts: the number of each source's first shard, and last the number of all shards.
        source_shards: shards of each source, without repeats.
    """

    counts: Indices
    starts: Indices
    source_starts: Indices
    source_shards: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        return int(self.starts[-1])


class Place(NamedTuple):
    """A shard of a source; `repeat` counts its appearances in an epoch from 0."""

    source: int
    repeat: int
    shard: int


def number_shards(sources: Sequence[Source]) -> ShardTable:
    """Numbers the shards of all sources: each source's repeats one after the other."""
    counts = np.concatenate([np.tile(np.asarray(one.shard_counts, dtype=np.int64), one.repeats) for one in sources])
    return ShardTable(
        counts=counts,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        source_starts=np.cumsum([0, *(len(one.shard_counts) * one.repeats for one in sources)]),
        source_shards=tuple(len(one.shard_counts) for one in sources),
    )


def locate_shard(table: ShardTable, shard: int) -> Place:
    """Returns the source, repeat and shard that a shard number stands for."""
    source = int(np.searchsorted(table.source_starts, shard, side="right")) - 1
    repeat, within = divmod(shard - int(table.source_starts[source]), table.source_shards[source])
    return Place(source, repeat, within)


def locate_sample(table: ShardTable, index: int) -> tuple[int, int]:
    """Returns (shard, position in it) of a global index."""
    shard = int(np.searchsorted(table.starts, index, side="right")) - 1
    return shard, index - int(table.starts[shard])


def locate_samples(table: ShardTable, indices: Indices) -> tuple[Indices, Indices]:
    """Returns (shards, positions in them) of many global indices."""
    shards = np.searchsorted(table.starts, indices, side="right") - 1
    return shards, indices - table.starts[shards]

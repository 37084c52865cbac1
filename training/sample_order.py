"""The order in which a data set's samples are trained on: a pure function of (manifest, seed, epoch, step).

In: the sample counts of the manifest's shards. Out: for any step, the global indices of its samples, in order. Nothing here
knows how many workers there are: rank r of W takes a contiguous slice of the step (`training.distributed.slice_bounds`), so
any number of workers sees the same batches, and a resume is one number, the samples seen.

How an epoch is laid out:
    1. the shards are permuted over the whole data set and laid end to end, each in its own order
    2. this sequence is cut into `num_streams` streams of equal length (what does not divide is left out of this epoch)
    3. every stream is shuffled within blocks of `block_size_samples`, so that reading stays sequential
    4. a step takes the next samples of every stream, in turn; within the step they are sorted by stream

Because a step is sorted by stream, a rank's contiguous slice touches about num_streams / W of the streams, and ranks do not
read the same blocks. Mixing grows with num_streams * block_size_samples, and so does the memory of all ranks together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import ConfigError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class StepSlots:
    """Where the samples of a step, or of a rank's slice of it, are read from. All arrays have one entry a sample.

    Attributes:
        stream, block: name the block within the epoch.
        index: the sample's global index (docs/decisions/0001-manifest.md).
    """

    stream: Indices
    block: Indices
    index: Indices

    def __getitem__(self, part: slice) -> StepSlots:
        return StepSlots(self.stream[part], self.block[part], self.index[part])


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring samples in one shard: [first, stop) within the shard."""

    shard: int
    first: int
    stop: int


@dataclass(frozen=True)
class SampleOrder:
    """The order of one data set version under one seed.

    Raises:
        ConfigError: an epoch would not hold one global batch.
    """

    shard_counts: tuple[int, ...]
    seed: int
    num_streams: int
    block_size_samples: int
    global_batch_size: int

    def __post_init__(self) -> None:
        if self.num_samples == 0:
            raise ConfigError("data.uri: the data set holds no samples; ingest some first")
        if self.stream_length * self.num_streams < self.global_batch_size:
            raise ConfigError(
                f"train.global_batch_size={self.global_batch_size} is more than the data set's {self.num_samples} samples "
                f"in {self.num_streams} equal streams: an epoch must hold at least one batch; use "
                f"{self.stream_length * self.num_streams or self.num_samples} or less, or a larger data set"
            )

    @cached_property
    def num_samples(self) -> int:
        return sum(self.shard_counts)

    @cached_property
    def stream_length(self) -> int:
        return self.num_samples // self.num_streams

    @cached_property
    def steps_per_epoch(self) -> int:
        return self.stream_length * self.num_streams // self.global_batch_size

    @cached_property
    def remainder(self) -> int:
        """Samples that an epoch does not show; which ones differs from epoch to epoch."""
        return self.num_samples - self.steps_per_epoch * self.global_batch_size

    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to see the same samples in the same order, besides the manifest."""
        return {
            "seed": self.seed,
            "num_streams": self.num_streams,
            "block_size_samples": self.block_size_samples,
            "global_batch_size": self.global_batch_size,
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

    def step_slots(self, epoch: int, step: int) -> StepSlots:
        """Where the step's samples come from, in their order."""
        positions = np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        streams, offsets = positions % self.num_streams, positions // self.num_streams
        by_stream = np.argsort(streams, kind="stable")
        streams, offsets = streams[by_stream], offsets[by_stream]
        blocks, places = np.divmod(offsets, self.block_size_samples)
        index = np.empty(len(streams), dtype=np.int64)
        # Sorted by stream and, within it, by offset: each block's samples are neighbours.
        starts = np.flatnonzero(np.diff(streams, prepend=-1) | np.diff(blocks, prepend=-1))
        for first, stop in zip(starts, [*starts[1:], len(streams)], strict=True):
            permuted = self._block_indices(epoch, int(streams[first]), int(blocks[first]))
            index[first:stop] = permuted[places[first:stop]]
        return StepSlots(streams, blocks, index)

    def step_samples(self, epoch: int, step: int) -> Indices:
        """The step's samples as global indices, in order: (G,)."""
        return self.step_slots(epoch, step).index

    def block_pieces(self, epoch: int, stream: int, block: int) -> list[Piece]:
        """What to read for a block: neighbouring samples, shard by shard."""
        return list(self._pieces(epoch, *self._block_range(stream, block)))

    def first_of_shard(self, shard: int) -> int:
        """The global index of a shard's first sample."""
        return int(self._starts[shard])

    # ----------------------------------------------------------------------------------------------------------- insides

    @cached_property
    def _starts(self) -> Indices:
        return np.concatenate([[0], np.cumsum(self.shard_counts)]).astype(np.int64)

    def _block_range(self, stream: int, block: int) -> tuple[int, int]:
        """[first, stop) of a block in the epoch's sequence of samples."""
        first = stream * self.stream_length + block * self.block_size_samples
        return first, min(first + self.block_size_samples, (stream + 1) * self.stream_length)

    def _pieces(self, epoch: int, first: int, stop: int) -> Iterator[Piece]:
        """The shards that lie under [first, stop) of the epoch's sequence."""
        order, starts = self._shard_layout(epoch)
        at = int(np.searchsorted(starts, first, side="right")) - 1
        while first < stop:
            shard, begin = int(order[at]), int(starts[at])
            end = min(stop, begin + self.shard_counts[shard])
            if end > first:
                yield Piece(shard, first - begin, end - begin)
            first, at = max(first, end), at + 1

    @cached_property
    def _block_indices(self) -> Callable[[int, int, int], Indices]:
        """(epoch, stream, block) -> the block's global indices in the order in which its stream gives them out."""
        return lru_cache(maxsize=4096)(self._permute_block)

    def _permute_block(self, epoch: int, stream: int, block: int) -> Indices:
        runs = [
            np.arange(piece.first, piece.stop) + self.first_of_shard(piece.shard)
            for piece in self.block_pieces(epoch, stream, block)
        ]
        return _rng(self.seed, epoch, stream, block).permutation(np.concatenate(runs))

    @cached_property
    def _shard_layout(self) -> Callable[[int], tuple[Indices, Indices]]:
        """epoch -> (shards in the epoch's order, where each begins in the epoch's sequence)."""
        return lru_cache(maxsize=4)(self._permute_shards)

    def _permute_shards(self, epoch: int) -> tuple[Indices, Indices]:
        permutation = _rng(self.seed, epoch).permutation(len(self.shard_counts))
        counts = np.asarray(self.shard_counts, dtype=np.int64)[permutation]
        return permutation, np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def _rng(*numbers: int) -> np.random.Generator:
    """A generator that depends on these numbers alone, the same on every platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))

"""Consecutive samples of each step, read and decoded, with substitutes for damaged ones.

In: a `Share`: data sets, their order, and the positions of a step that one process makes. Out: pixels in the memory that the
caller provides, and a `BatchSlice` with everything else, in order of the steps. What a slice holds depends on its positions
alone, so slices of any lengths make the same batch.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import ManifestError
from training.config import DataConfig
from training.data.damaged_samples import damage_error
from training.data.data_sets import DataSet
from training.data.decoding import Decoder, Encoded, PendingBatch, Transform, decode, stack_texts
from training.data.prefetcher import SUBSTITUTES_TRIED, SampleFetcher
from training.data.sample_order import SampleOrder
from training.data.shard_reader import RawSample


@dataclass(frozen=True)
class Share:
    """The work of one process.

    Attributes:
        bounds: [start, stop) of the positions of each step.
        threads: that decode.
        samples_seen: position at which the run starts or resumes.
    """

    data_sets: Sequence[DataSet]
    order: SampleOrder
    bounds: tuple[int, int]
    config: DataConfig
    transform: Transform
    samples_seen: int
    threads: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels."""
        size = self.transform.image_size_px
        return (self.bounds[1] - self.bounds[0], size, size, 3)

    def split(self, threads: Sequence[int]) -> list[Share]:
        """Divides positions, memory and reading threads in proportion to the decoding threads of each part."""
        ends = [0, *itertools.accumulate(threads)]
        places = [self.bounds[0] + self.shape[0] * end // ends[-1] for end in ends]
        return [
            replace(
                self,
                bounds=(first, stop),
                threads=number,
                config=self.config.model_copy(
                    update={
                        "prefetch_bytes": max(1, self.config.prefetch_bytes * number // ends[-1]),
                        "read_threads": -(-self.config.read_threads * number // ends[-1]),
                    }
                ),
            )
            for (first, stop), number in zip(itertools.pairwise(places), threads, strict=True)
        ]


@dataclass(frozen=True)
class BatchSlice:
    """Consecutive samples of a step, without their pixels.

    Attributes:
        texts: token ids, uint16 (B, L), zero-padded, cut to the longest.
        seeds: int64 (B,).
        problems: of the damaged samples that others have replaced.
    """

    texts: NDArray[np.uint16]
    keys: list[str]
    seeds: NDArray[np.int64]
    problems: list[str]


@dataclass(frozen=True)
class _InFlight:
    """A slice that is being decoded."""

    epoch: int
    indices: list[int]
    samples: list[RawSample]
    encoded: list[Encoded]
    pixels: NDArray[np.uint8]
    pending: PendingBatch
    problems: list[str]


class SliceMaker:
    """Makes one slice of each step, several at a time."""

    def __init__(self, share: Share) -> None:
        self._order, self._config, self._transform = share.order, share.config, share.transform
        self._fetcher = SampleFetcher(share.data_sets, share.order, share.bounds, share.config, share.samples_seen)
        self._decoder = Decoder(share.transform, share.threads)
        self._in_flight: collections.deque[_InFlight | Exception] = collections.deque()
        self._error: Exception | None = None

    @property
    def in_flight(self) -> int:
        """Slices that were begun and not finished."""
        return len(self._in_flight)

    def begin(self, epoch: int, step: int, pixels: NDArray[np.uint8]) -> None:
        """Reads the slice of a step and starts to decode it. Must be called for one step after the other.

        An error is raised by `finish`, after the slices before it; nothing is read after one.
        """
        if self._error is None:
            try:
                self._in_flight.append(self._read(epoch, step, pixels))
                return
            except Exception as error:
                self._error = error
        self._in_flight.append(self._error)

    def finish(self) -> BatchSlice:
        """Waits for the slice that was begun first.

        Raises:
            ManifestError: a sample is damaged, and `data.on_damage` is fail.
            StorageError: the storage fails.
        """
        work = self._in_flight.popleft()
        if isinstance(work, Exception):
            raise work
        texts, undecoded = work.pending.result()
        for place, problem in undecoded.items():
            index, sample = work.indices[place], work.samples[place]
            self._skip(f"{self._fetcher.address(index)}: sample {sample.key}: {problem}", work.problems)
            row = self._substitute(work, place)
            texts = stack_texts([texts[:place], row, texts[place + 1 :]])
        return BatchSlice(
            texts=texts,
            keys=[sample.key for sample in work.samples],
            seeds=np.array([seed_number(one.seed) for one in work.encoded], np.int64),
            problems=work.problems,
        )

    def under_way(self) -> list[tuple[str, float]]:
        """Returns (address, seconds) of the reads that are under way."""
        return self._fetcher.under_way()

    def close(self, wait: bool = True) -> None:
        """Ends the threads; waits for reads that are under way, or not."""
        self._fetcher.close(wait)
        self._decoder.close()

    def _read(self, epoch: int, step: int, pixels: NDArray[np.uint8]) -> _InFlight:
        indices, found = self._fetcher.step(epoch, step)
        problems: list[str] = []
        samples = []
        for index, sample in zip(indices, found, strict=True):
            if not isinstance(sample, RawSample):
                self._skip(sample.problem, problems)
                sample = next(self._fetcher.substitutes(epoch, index))
            samples.append(sample)
        encoded = list(self._encoded(epoch, indices, samples))
        return _InFlight(epoch, indices, samples, encoded, pixels, self._decoder.submit(encoded, pixels), problems)

    def _encoded(self, epoch: int, indices: list[int], samples: list[RawSample]) -> Iterator[Encoded]:
        """Yields samples with the seeds of crop and caption: the same at any world size and after any resume."""
        for sample, repeat in zip(samples, self._fetcher.repeats(indices), strict=True):
            seed, captions = f"{self._order.seed}/{epoch}/{sample.key}" + (f"/{repeat}" if repeat else ""), sample.captions
            caption = captions[0] if len(captions) == 1 else random.Random(f"{seed}/caption").choice(captions)
            yield Encoded(sample.image, caption, seed, sample.sha256)

    def _substitute(self, work: _InFlight, place: int) -> NDArray[np.uint16]:
        """Replaces a sample that cannot be decoded, and its pixels. Returns the token ids of the other one."""
        index = work.indices[place]
        for sample in itertools.islice(self._fetcher.substitutes(work.epoch, index), SUBSTITUTES_TRIED):
            (encoded,) = self._encoded(work.epoch, [index], [sample])
            texts, problems = decode([encoded], self._transform, work.pixels[place : place + 1])
            if not problems:
                work.samples[place], work.encoded[place] = sample, encoded
                return texts
        raise ManifestError(
            f"{self._fetcher.address(index)}: none of {SUBSTITUTES_TRIED} substitutes can be decoded; restore the data"
        )

    def _skip(self, problem: str, problems: list[str]) -> None:
        """Notes a damaged sample. Raises ManifestError if none may be skipped."""
        if self._config.on_damage == "fail":
            raise damage_error(problem)
        problems.append(problem)


def seed_number(seed: str) -> int:
    """Hashes a seed to a signed 64-bit number."""
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little", signed=True)

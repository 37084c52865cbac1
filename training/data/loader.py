"""A rank's batches in the global order, from the position at which a run starts or resumes.

In: data sets, their `SampleOrder` and this rank's `World`. Out: `Batch`es of decoded, augmented images and token ids. A thread
prepares them ahead of the model: `SampleFetcher` reads, `Decoder` decodes, several batches at a time are in flight. The global
batch is a function of (manifests, seed, epoch, step): it depends neither on the number of ranks and workers nor on earlier
steps.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import logging
import queue
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.manifest import ManifestError
from training.config import DataConfig
from training.data.damaged_samples import DamagedSamples, damage_error
from training.data.data_sets import DataSet
from training.data.decoding import Decoder, Encoded, PendingBatch, Transform, cut_to_longest, decode, stack_texts
from training.data.order_layout import next_step
from training.data.prefetcher import SUBSTITUTES_TRIED, Sample, SampleFetcher
from training.data.sample_order import SampleOrder
from training.data.shard_reader import RawSample
from training.distributed import World, slice_bounds

logger = logging.getLogger(__name__)

GIVES_UP_AFTER_S = 10.0
"""Wait for data after which a rank that is asked to stop does not wait any longer."""


@dataclass(frozen=True)
class Batch:
    """A rank's slice of one step.

    Attributes:
        images: uint8 (B, 3, H, W), augmented, not normalised, on the rank's device; laid out in memory as (B, H, W, 3).
        texts: int64 (B, L), cut to the slice's longest caption; on the CPU, where counting tokens needs no synchronisation.
        keys: the samples' keys, in order.
        seeds: int64 (B,), one for each sample and epoch; on the CPU.
    """

    images: Tensor
    texts: Tensor
    keys: list[str]
    seeds: Tensor
    epoch: int
    step: int


@dataclass(frozen=True)
class _InFlight:
    """A batch that is being decoded."""

    epoch: int
    step: int
    indices: list[int]
    samples: list[RawSample]
    pending: PendingBatch


class TrainLoader:
    """Iterates over a rank's batches without end, epoch after epoch, starting after `samples_seen`."""

    def __init__(
        self,
        data_sets: Sequence[DataSet],
        order: SampleOrder,
        world: World,
        image_size_px: int,
        context_length: int,
        config: DataConfig,
        samples_seen: int,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            gives_up: asked by a rank that waits for its data; the iteration ends 10 s after it has become true, and after
                10 s of waiting on a rank that is alone.

        Raises:
            ConfigError: the order's blocks would not fit into `data.prefetch_bytes`.
        """
        self.order, self.world, self.config = order, world, config
        self.wait_s = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._gives_up, self._gave_up = gives_up, False
        self._damaged = DamagedSamples(config.max_skipped_samples, f"rank {world.rank}")
        bounds = slice_bounds(order.layout.global_batch_size, world.rank, world.world_size)
        self._fetcher = SampleFetcher(data_sets, order, bounds, config, samples_seen)
        self._transform = Transform(image_size_px, context_length, config.crop_scale_min)
        self._decoder = Decoder(self._transform, decode_workers(config, world.device))
        self._bounds = bounds
        self._start = next_step(order.layout, samples_seen)
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=config.prefetch_batches)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="train-loader", daemon=True)
        self._thread.start()

    @property
    def skipped_samples(self) -> int:
        """Damaged samples of this rank that were replaced by others so far."""
        return self._damaged.skipped

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches with their images on the rank's device, without end unless it gives up."""
        device = self.world.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        while True:
            began = time.perf_counter()
            item = self._next()
            self.wait_s += time.perf_counter() - began
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item if stream is None else _copy(item, device, stream)

    def fingerprint(self, batch: Batch) -> int:
        """Returns a number whose sum over ranks identifies a global batch by its keys and their order.

        It is below 2**32 times the slice's length, so float64 holds the sum over 2**20 samples exactly.
        """
        first = self._bounds[0]
        return sum(zlib.crc32(f"{place}/{key}".encode()) for place, key in enumerate(batch.keys, start=first))

    def close(self) -> None:
        """Ends the threads and workers that read ahead; does not wait for reads that were given up. Safe to call twice."""
        self._closed.set()
        while not self._gave_up and self._thread.is_alive():
            self._thread.join(timeout=0.05)
        self._fetcher.close(wait=not self._gave_up)
        self._decoder.close()

    def _next(self) -> Batch | BaseException | None:
        """Waits for a batch or an error; None: gave up. train.hang_timeout_s bounds the wait otherwise.

        One rank alone saves when it gives up. In a group it costs the others the steps since the last checkpoint, so the data
        have their time from the request on, however long they have been late.
        """
        began = warned = time.monotonic()
        alone, asked_at = self.world.world_size == 1, float("inf")
        while True:
            try:
                return self._queue.get(timeout=min(1.0, self.config.stall_warning_s))
            except queue.Empty:
                now = time.monotonic()
            if now - warned >= self.config.stall_warning_s:
                warned, reads = now, self._fetcher.under_way()
                logger.warning("rank %d has waited %.0f s for data; under way: %s", self.world.rank, now - began, reads)
            if asked_at > now and (now - began >= GIVES_UP_AFTER_S or not alone) and self._gives_up():
                asked_at = now
            if asked_at <= now and (alone or now - asked_at >= GIVES_UP_AFTER_S):
                self._gave_up = True
                logger.warning("rank %d has waited %.0f s for data, and the run is to stop", self.world.rank, now - began)
                return None

    # ------------------------------------------------------------------------------------------- the thread reading ahead

    def _produce(self) -> None:
        in_flight: collections.deque[_InFlight] = collections.deque()
        try:
            for epoch, step in self._steps():
                in_flight.append(self._begin(epoch, step))
                if len(in_flight) > self.config.prefetch_batches:
                    self._put(self._finish(in_flight.popleft()))
                if self._closed.is_set():
                    return
        except BaseException as error:  # the consumer raises any error, after the batches before it
            self._put_rest(in_flight, error)

    def _steps(self) -> Iterator[tuple[int, int]]:
        first_epoch, first_step = self._start
        for epoch in itertools.count(first_epoch):
            for step in range(first_step if epoch == first_epoch else 0, self.order.steps_per_epoch):
                yield epoch, step

    def _put(self, item: Batch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _put_rest(self, in_flight: collections.deque[_InFlight], error: BaseException) -> None:
        try:
            while in_flight and not self._closed.is_set():
                self._put(self._finish(in_flight.popleft()))
        except BaseException as earlier:
            error = earlier
        self._put(error)

    def _begin(self, epoch: int, step: int) -> _InFlight:
        """Reads a batch and hands it to the decoder."""
        indices = self.order.step_samples(epoch, step, *self._bounds).tolist()
        found = self._fetcher.step(epoch, step)
        samples = [self._whole(epoch, index, sample) for index, sample in zip(indices, found, strict=True)]
        encoded = [self._encoded(epoch, index, sample) for index, sample in zip(indices, samples, strict=True)]
        return _InFlight(epoch, step, indices, samples, self._decoder.submit(encoded))

    def _finish(self, batch: _InFlight) -> Batch:
        decoded = batch.pending.result()
        texts = decoded.texts
        for place, problem in decoded.problems.items():
            index, sample = batch.indices[place], batch.samples[place]
            self._skip(f"{self._fetcher.address(index)}: sample {sample.key}: {problem}")
            batch.samples[place], row = self._substitute(batch.epoch, index, decoded.pixels[place : place + 1])
            texts = stack_texts([texts[:place], row, texts[place + 1 :]])
        pixels = torch.from_numpy(decoded.pixels)
        return Batch(
            images=self._pinned(pixels).permute(0, 3, 1, 2),  # (B, H, W, 3) -> (B, 3, H, W)
            texts=torch.from_numpy(cut_to_longest(texts).astype(np.int64)),
            keys=[sample.key for sample in batch.samples],
            seeds=torch.tensor(
                [
                    seed_number(self._seed(batch.epoch, index, sample))
                    for index, sample in zip(batch.indices, batch.samples, strict=True)
                ]
            ),
            epoch=batch.epoch,
            step=batch.step,
        )

    def _pinned(self, tensor: Tensor) -> Tensor:
        """Copies to pinned memory, from which a GPU can copy asynchronously; on a CPU, does nothing."""
        return tensor.pin_memory() if self.world.device.type == "cuda" else tensor

    def _seed(self, epoch: int, index: int, sample: RawSample) -> str:
        """Returns the seed of a sample's crop and caption: the same at any world size and after any resume."""
        repeat = self._fetcher.repeat(index)
        return f"{self.order.seed}/{epoch}/{sample.key}" + (f"/{repeat}" if repeat else "")

    def _encoded(self, epoch: int, index: int, sample: RawSample) -> Encoded:
        seed, captions = self._seed(epoch, index, sample), sample.captions
        caption = captions[0] if len(captions) == 1 else random.Random(f"{seed}/caption").choice(captions)
        return Encoded(sample.image, caption, seed, sample.sha256)

    # ----------------------------------------------------------------------------------------------------- damaged samples

    def _whole(self, epoch: int, index: int, sample: Sample) -> RawSample:
        """Returns the sample, or a substitute if it is damaged and may be skipped."""
        if isinstance(sample, RawSample):
            return sample
        self._skip(sample.problem)
        return next(self._fetcher.substitutes(epoch, index))

    def _substitute(self, epoch: int, index: int, pixels: NDArray[np.uint8]) -> tuple[RawSample, NDArray[np.uint16]]:
        """Returns a substitute for a sample that cannot be decoded, and its token ids; writes its pixels in place."""
        for sample in itertools.islice(self._fetcher.substitutes(epoch, index), SUBSTITUTES_TRIED):
            texts, problems = decode([self._encoded(epoch, index, sample)], self._transform, pixels)
            if not problems:
                return sample, texts
        raise ManifestError(
            f"{self._fetcher.address(index)}: none of {SUBSTITUTES_TRIED} substitutes can be decoded; restore the data"
        )

    def _skip(self, problem: str) -> None:
        """Counts a damaged sample. Raises ManifestError if none, or no more, may be skipped."""
        if self.config.on_damage == "fail":
            raise damage_error(problem)
        self._damaged.skip(problem)


def _copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    """Returns the batch with its images on a GPU, copied from pinned memory while the GPU computes."""
    with torch.cuda.stream(stream):
        images = batch.images.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    images.record_stream(current)
    return replace(batch, images=images)


def seed_number(seed: str) -> int:
    """Hashes a seed to a signed 64-bit number."""
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little", signed=True)


def decode_workers(config: DataConfig, device: torch.device) -> int:
    """Returns `data.decode_workers`, with auto resolved. Ray gives a worker as many threads as it has CPUs."""
    if config.decode_workers != "auto":
        return config.decode_workers
    return max(1, torch.get_num_threads() - 1) if device.type == "cuda" else 0

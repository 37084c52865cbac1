"""A rank's batches in the global order, from the position at which a run starts or resumes.

In: data sets, their `SampleOrder` and this rank's `World`. Out: `Batch`es of decoded, augmented images and token ids. They are
prepared ahead of the model, several at a time: `LoaderWorkers` read and decode in other processes, so that this one only joins
what they made; with `data.decode_workers=0` a thread of this process does it all. The global batch is a function of (manifests,
seed, epoch, step): it depends neither on the number of ranks and workers nor on earlier steps.
"""

from __future__ import annotations

import collections
import itertools
import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import DataConfig
from training.data.damaged_samples import DamagedSamples
from training.data.data_sets import DataSet, check_prefetch, mean_sample_bytes
from training.data.decoding import Transform, cut_to_longest, stack_texts
from training.data.loader_workers import LoaderWorkers
from training.data.order_layout import next_step
from training.data.sample_order import SampleOrder
from training.data.slice_maker import BatchSlice, Share, SliceMaker
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
        check_prefetch(config, order, mean_sample_bytes(data_sets, order), bounds[1] - bounds[0])
        transform = Transform(image_size_px, context_length, config.crop_scale_min)
        share = Share(tuple(data_sets), order, bounds, config, transform, samples_seen)
        decoders, pinned = decode_workers(config, world.device), world.device.type == "cuda"
        self._source = LoaderWorkers(share, decoders, pinned) if decoders else _InProcess(share)
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
        copies = _Copies(self.world.device) if self.world.device.type == "cuda" else None
        while True:
            began = time.perf_counter()
            item = self._next()
            self.wait_s += time.perf_counter() - began
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item if copies is None else copies(item)

    def fingerprint(self, batch: Batch) -> int:
        """Returns a number whose sum over ranks identifies a global batch by its keys and their order.

        It is below 2**32 times the slice's length, so float64 holds the sum over 2**20 samples exactly.
        """
        first = self._bounds[0]
        return sum(zlib.crc32(f"{place}/{key}".encode()) for place, key in enumerate(batch.keys, start=first))

    def process_ids(self) -> list[int]:
        """Returns the ids of the processes that read and decode; none with `data.decode_workers=0`."""
        return self._source.process_ids()

    def close(self) -> None:
        """Ends the threads and processes that read ahead; does not wait for reads that were given up. Safe to call twice."""
        self._closed.set()
        self._source.interrupt()
        while not self._gave_up and self._thread.is_alive():
            self._thread.join(timeout=0.05)
        self._thread.join(timeout=0.5)
        self._source.close(wait=not self._gave_up)

    def _next(self) -> Batch | BaseException | None:
        """Waits for a batch or an error; None: gave up, or closed. train.hang_timeout_s bounds the wait otherwise.

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
            if self._closed.is_set():
                return None
            if now - warned >= self.config.stall_warning_s:
                warned, reads = now, _describe(self._source.under_way())
                logger.warning("rank %d has waited %.0f s for data; under way: %s", self.world.rank, now - began, reads)
            if asked_at > now and (now - began >= GIVES_UP_AFTER_S or not alone) and self._gives_up():
                asked_at = now
            if asked_at <= now and (alone or now - asked_at >= GIVES_UP_AFTER_S):
                self._gave_up = True
                logger.warning("rank %d has waited %.0f s for data, and the run is to stop", self.world.rank, now - began)
                return None

    # ------------------------------------------------------------------------------------------- the thread reading ahead

    def _produce(self) -> None:
        in_flight: collections.deque[tuple[int, int]] = collections.deque()
        try:
            for epoch, step in self._steps():
                self._source.begin(epoch, step)
                in_flight.append((epoch, step))
                if len(in_flight) > self.config.prefetch_batches:
                    self._put(self._assemble(*in_flight.popleft(), *self._source.finish()))
                if self._closed.is_set():
                    return
        except BaseException as error:  # the consumer raises any error, after the batches before it
            self._put(error)

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

    def _assemble(self, epoch: int, step: int, pixels: NDArray[np.uint8], slices: Sequence[BatchSlice]) -> Batch:
        """Joins what the slices hold besides pixels. Raises ManifestError if too many samples were damaged."""
        for one in slices:
            for problem in one.problems:
                self._damaged.skip(problem)
        return Batch(
            images=self._pinned(torch.from_numpy(pixels)).permute(0, 3, 1, 2),  # (B, H, W, 3) -> (B, 3, H, W)
            texts=torch.from_numpy(cut_to_longest(stack_texts([one.texts for one in slices])).astype(np.int64)),
            keys=[key for one in slices for key in one.keys],
            seeds=torch.from_numpy(np.concatenate([one.seeds for one in slices])),
            epoch=epoch,
            step=step,
        )

    def _pinned(self, tensor: Tensor) -> Tensor:
        """Copies to pinned memory, from which a GPU can copy asynchronously, unless it is there; on a CPU, does nothing."""
        return tensor.pin_memory() if self.world.device.type == "cuda" else tensor


def _describe(reads: list[tuple[str, float]]) -> str:
    """Names the reads that have taken longest, for a report of a stall."""
    oldest = sorted(reads, key=lambda read: -read[1])[:3]
    return ", ".join(f"{address} for {seconds:.0f} s" for address, seconds in oldest) or "no read is under way"


class _InProcess:
    """Slices made in this process, by one thread that decodes: the interface of `LoaderWorkers`."""

    def __init__(self, share: Share) -> None:
        self._shape, self._maker = share.shape, SliceMaker(share)
        self._in_flight: collections.deque[NDArray[np.uint8]] = collections.deque()
        self.under_way = self._maker.under_way
        self.close = self._maker.close

    def begin(self, epoch: int, step: int) -> None:
        self._in_flight.append(np.empty(self._shape, dtype=np.uint8))
        self._maker.begin(epoch, step, self._in_flight[-1])

    def finish(self) -> tuple[NDArray[np.uint8], list[BatchSlice]]:
        return self._in_flight.popleft(), [self._maker.finish()]

    def interrupt(self) -> None:
        """Reads in this process cannot be interrupted."""

    def process_ids(self) -> list[int]:
        return []


class _Copies:
    """Copies batches to a GPU on a stream of their own, while it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._under_way: collections.deque[tuple[torch.cuda.Event, Tensor]] = collections.deque()

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with its images on the GPU."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        with torch.cuda.stream(self._stream):
            images = batch.images.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        self._under_way.append((copied, batch.images))  # shared memory would be used again as soon as it is released
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        images.record_stream(current)
        return replace(batch, images=images)


def decode_workers(config: DataConfig, device: torch.device) -> int:
    """Returns `data.decode_workers`, with auto resolved. Ray gives a worker as many threads as it has CPUs."""
    if config.decode_workers != "auto":
        return config.decode_workers
    return max(1, torch.get_num_threads() - 1) if device.type == "cuda" else 0

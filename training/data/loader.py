"""A rank's batches, in the global order, from where a run stopped.

In: data sets, their `SampleOrder` and this rank's `World`. Out: `Batch`es of decoded, augmented pictures and token ids. A
thread prepares them ahead of the model: `SampleFetcher` reads, `Decoder` decodes, several batches at a time are on their way.
A batch is a function of (manifests, seed, epoch, step): of the number of ranks, of workers and of the steps before it nothing
depends.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.image_loading import load_eval_image
from model.tokenizer import token_ids
from pipeline.dataset.manifest import Manifest, ManifestError
from pipeline.storage.base import Storage
from training.config import DataConfig
from training.data.data_sets import DataSet
from training.data.decoding import Decoder, Encoded, PendingBatch, Transform, cut_to_longest, decode, stack_texts
from training.data.prefetcher import Sample, SampleFetcher
from training.data.sample_order import SampleOrder
from training.data.shard_reader import RawSample, ShardReader
from training.distributed import World, slice_bounds

logger = logging.getLogger(__name__)

SUBSTITUTES_TRIED = 100


@dataclass(frozen=True)
class Batch:
    """A rank's slice of one step.

    Attributes:
        images: uint8 (B, 3, H, W), augmented, not normalised; its memory is laid out as (B, H, W, 3). On the rank's device.
        texts: int64 (B, L), cut to the slice's longest caption. On the CPU, where the model counts tokens without waiting.
        keys: of the samples, in order.
        seeds: int64 (B,), of each sample and epoch; on the CPU.
    """

    images: Tensor
    texts: Tensor
    keys: list[str]
    seeds: Tensor
    epoch: int
    step: int


@dataclass(frozen=True)
class _OnItsWay:
    """A batch that is being decoded."""

    epoch: int
    step: int
    indices: list[int]
    samples: list[RawSample]
    pending: PendingBatch


class TrainLoader:
    """Iterates over a rank's batches for ever, epoch after epoch, starting after `samples_seen`."""

    def __init__(
        self,
        data_sets: Sequence[DataSet],
        order: SampleOrder,
        world: World,
        image_size_px: int,
        context_length: int,
        config: DataConfig,
        samples_seen: int,
    ) -> None:
        """Raises ConfigError where the order's blocks would not fit into `data.prefetch_bytes`."""
        self.order, self.world, self.config = order, world, config
        self.wait_s = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self.skipped_samples = 0
        """Samples of this rank that others have taken the place of so far."""
        bounds = slice_bounds(order.global_batch_size, world.rank, world.world_size)
        self._fetcher = SampleFetcher(data_sets, order, bounds, config, samples_seen)
        self._transform = Transform(image_size_px, context_length, config.crop_scale_min)
        self._decoder = Decoder(self._transform, decode_workers(config, world.device))
        self._bounds = bounds
        self._start = order.locate(samples_seen)
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=config.prefetch_batches)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="train-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        """Batches with their pictures on the rank's device."""
        device = self.world.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        while True:
            began = time.perf_counter()
            item = self._next()
            self.wait_s += time.perf_counter() - began
            if isinstance(item, BaseException):
                raise item
            yield item if stream is None else _copy(item, device, stream)

    def fingerprint(self, batch: Batch) -> int:
        """A number whose sum over ranks tells batches apart by the keys of their samples and their order.

        Below 2**32 times the slice's length, so that float64 holds the sum of 2**20 samples exactly.
        """
        first = self._bounds[0]
        return sum(zlib.crc32(f"{place}/{key}".encode()) for place, key in enumerate(batch.keys, start=first))

    def close(self) -> None:
        """Ends the threads and workers that read ahead. Safe to call twice."""
        self._closed.set()
        while self._thread.is_alive():
            self._thread.join(timeout=0.05)
        self._fetcher.close()
        self._decoder.close()

    def _next(self) -> Batch | BaseException:
        began = time.monotonic()
        while True:
            try:
                return self._queue.get(timeout=self.config.stall_warning_s)
            except queue.Empty:
                waited_s = time.monotonic() - began
                reads = self._fetcher.under_way()
                logger.warning("rank %d has waited %.0f s for data; under way: %s", self.world.rank, waited_s, reads)

    # ------------------------------------------------------------------------------------------- the thread reading ahead

    def _produce(self) -> None:
        on_their_way: collections.deque[_OnItsWay] = collections.deque()
        try:
            for epoch, step in self._steps():
                on_their_way.append(self._begin(epoch, step))
                if len(on_their_way) > self.config.prefetch_batches:
                    self._put(self._finish(on_their_way.popleft()))
                if self._closed.is_set():
                    return
        except BaseException as error:  # whatever it is, the consumer must learn of it, after the batches before it
            self._put_rest(on_their_way, error)

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

    def _put_rest(self, on_their_way: collections.deque[_OnItsWay], error: BaseException) -> None:
        try:
            while on_their_way and not self._closed.is_set():
                self._put(self._finish(on_their_way.popleft()))
        except BaseException as earlier:
            error = earlier
        self._put(error)

    def _begin(self, epoch: int, step: int) -> _OnItsWay:
        """Reads a batch and hands it to the decoder."""
        indices = self.order.step_samples(epoch, step, *self._bounds).tolist()
        found = self._fetcher.step(epoch, step)
        samples = [self._whole(epoch, index, sample) for index, sample in zip(indices, found, strict=True)]
        encoded = [self._encoded(epoch, index, sample) for index, sample in zip(indices, samples, strict=True)]
        return _OnItsWay(epoch, step, indices, samples, self._decoder.submit(encoded))

    def _finish(self, batch: _OnItsWay) -> Batch:
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
                    number_of(self._seed(batch.epoch, index, sample))
                    for index, sample in zip(batch.indices, batch.samples, strict=True)
                ]
            ),
            epoch=batch.epoch,
            step=batch.step,
        )

    def _pinned(self, tensor: Tensor) -> Tensor:
        """A copy that a GPU can fetch by itself, where there is one."""
        return tensor.pin_memory() if self.world.device.type == "cuda" else tensor

    def _seed(self, epoch: int, index: int, sample: RawSample) -> str:
        """What all that is random about a sample comes from: the same at any world size and after any resume."""
        repeat = self._fetcher.repeat(index)
        return f"{self.order.seed}/{epoch}/{sample.key}" + (f"/{repeat}" if repeat else "")

    def _encoded(self, epoch: int, index: int, sample: RawSample) -> Encoded:
        seed, captions = self._seed(epoch, index, sample), sample.captions
        caption = captions[0] if len(captions) == 1 else random.Random(f"{seed}/caption").choice(captions)
        return Encoded(sample.image, caption, seed, sample.sha256)

    # ----------------------------------------------------------------------------------------------------- damaged samples

    def _whole(self, epoch: int, index: int, sample: Sample) -> RawSample:
        """The sample, or another in its place where it is damaged and the configuration allows it."""
        if isinstance(sample, RawSample):
            return sample
        self._skip(sample.problem)
        return next(self._fetcher.substitutes(epoch, index))

    def _substitute(self, epoch: int, index: int, pixels: NDArray[np.uint8]) -> tuple[RawSample, NDArray[np.uint16]]:
        """A sample in place of one that cannot be decoded: itself, its pixels (in place) and its token ids."""
        for sample in itertools.islice(self._fetcher.substitutes(epoch, index), SUBSTITUTES_TRIED):
            texts, problems = decode([self._encoded(epoch, index, sample)], self._transform, pixels)
            if not problems:
                return sample, texts
        raise ManifestError(f"{self._fetcher.address(index)}: of {SUBSTITUTES_TRIED} other samples none can be decoded")

    def _skip(self, problem: str) -> None:
        """Counts a damaged sample. Raises ManifestError where none, or no further one, may be skipped."""
        if self.config.on_damage == "fail":
            raise ManifestError(f"{problem} (or train without such samples: data.on_damage=skip)")
        self.skipped_samples += 1
        if self.skipped_samples > self.config.max_skipped_samples:
            raise ManifestError(
                f"data.max_skipped_samples={self.config.max_skipped_samples}: rank {self.world.rank} found one more damaged "
                f"sample ({problem}); restore the data, or raise the limit"
            )
        if self.skipped_samples <= 10 or self.skipped_samples % 100 == 0:
            logger.warning("rank %d skips its sample no. %d: %s", self.world.rank, self.skipped_samples, problem)


def _copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    """The batch with its pictures on a GPU, copied from pinned memory beside what the GPU is still computing."""
    with torch.cuda.stream(stream):
        images = batch.images.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    images.record_stream(current)
    return replace(batch, images=images)


def number_of(seed: str) -> int:
    """A seed as a signed number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little", signed=True)


def decode_workers(config: DataConfig, device: torch.device) -> int:
    """`data.decode_workers`, with auto resolved. Ray gives a worker as many threads as it has CPUs."""
    if config.decode_workers != "auto":
        return config.decode_workers
    return max(1, torch.get_num_threads() - 1) if device.type == "cuda" else 0


@dataclass(frozen=True)
class EvaluationBatch:
    """Neighbouring samples of a data set, as they are evaluated.

    Attributes:
        images: uint8 (B, 3, H, W), centre crop.
        texts: int64 (B, L).
        columns: sidecar columns that were asked for, one value a sample.
    """

    images: Tensor
    texts: Tensor
    keys: list[str]
    captions: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)


def iterate_evaluation(
    storage: Storage,
    manifest: Manifest,
    image_size_px: int,
    context_length: int,
    batch_size: int,
    world: World,
    columns: Sequence[str] = (),
) -> Iterator[EvaluationBatch]:
    """A rank's contiguous slice of all samples, once, in the order of their index."""
    reader = ShardReader(storage, manifest)
    start, stop = slice_bounds(manifest.num_samples, world.rank, world.world_size)
    first_of_shard = 0
    for shard, record in enumerate(manifest.shards):
        first, last = max(start - first_of_shard, 0), min(stop - first_of_shard, record.num_samples)
        first_of_shard += record.num_samples
        if first >= last:
            continue
        table = reader.columns(shard, columns) if columns else None
        for at in range(first, last, batch_size):
            end = min(at + batch_size, last)
            raw = reader.read(shard, at, end)
            captions = [sample.caption for sample in raw]
            pixels = np.stack([_eval_pixels(sample, image_size_px) for sample in raw])
            yield EvaluationBatch(
                images=torch.from_numpy(pixels).permute(0, 3, 1, 2),  # (B, H, W, 3) -> (B, 3, H, W)
                texts=torch.from_numpy(cut_to_longest(token_ids(captions, context_length)).astype(np.int64)),
                keys=[sample.key for sample in raw],
                captions=captions,
                columns={} if table is None else table.slice(at, end - at).to_pydict(),
            )


def _eval_pixels(sample: RawSample, image_size_px: int) -> NDArray[np.uint8]:
    try:
        return load_eval_image(sample.image, image_size_px)
    except ValueError as error:
        raise ManifestError(f"sample {sample.key}: {error}") from None

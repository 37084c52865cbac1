"""A rank's batches, in the global order, from where a run stopped.

In: a data set version, its `SampleOrder` and this rank's `World`. Out: `Batch`es of decoded, augmented pictures and token ids,
prepared by a thread ahead of the model. A block of the order is read with a range read for each shard that it touches, by the
ranks that need it, when they first need it; so a resume reads nothing that it skips.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.preprocess import decode_image, eval_crop, train_crop
from model.tokenizer import tokenize
from pipeline.manifest import Manifest
from pipeline.storage import Storage
from training.config import ConfigError, DataConfig
from training.distributed import World, slice_bounds
from training.sample_order import SampleOrder
from training.shards import RawSample, ShardReader

logger = logging.getLogger(__name__)

STALL_WARNING_S = 30.0


@dataclass(frozen=True)
class Batch:
    """A rank's slice of one step.

    Attributes:
        images: uint8 (B, 3, H, W), augmented, not normalised.
        texts: int64 (B, L), cut to the slice's longest caption.
        keys: of the samples, in order.
    """

    images: Tensor
    texts: Tensor
    keys: list[str]
    epoch: int
    step: int


class TrainLoader:
    """Iterates over a rank's batches for ever, epoch after epoch, starting after `start_samples_seen`."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        order: SampleOrder,
        world: World,
        image_size_px: int,
        context_length: int,
        config: DataConfig,
        start_samples_seen: int,
    ) -> None:
        """Raises ConfigError where the order's blocks would not fit into `data.prefetch_bytes`."""
        self.order, self.world, self.config = order, world, config
        self.image_size_px, self.context_length = image_size_px, context_length
        self.wait_s = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._reader = ShardReader(storage, manifest)
        self._check_budget()
        self._start = order.locate(start_samples_seen)
        self._slice = slice(*slice_bounds(order.global_batch_size, world.rank, world.world_size))
        self._blocks: dict[tuple[int, int, int], dict[int, RawSample]] = {}
        self._doing = "starting"
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=config.prefetch_batches)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="train-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            item = self._next()
            self.wait_s += time.perf_counter() - began
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Ends the thread that reads ahead. Safe to call twice."""
        self._closed.set()
        while self._thread.is_alive():
            self._thread.join(timeout=0.05)

    def _next(self) -> Batch | BaseException:
        waited_s = 0.0
        while True:
            try:
                return self._queue.get(timeout=STALL_WARNING_S)
            except queue.Empty:
                waited_s += STALL_WARNING_S
                logger.warning("rank %d waits for data since %.0f s: %s", self.world.rank, waited_s, self._doing)

    # ----------------------------------------------------------------------------------------------- the reading thread

    def _produce(self) -> None:
        try:
            with ThreadPoolExecutor(self.config.decode_threads, thread_name_prefix="decode") as pool:
                for epoch, step in self._steps():
                    self._put(self._prepare(epoch, step, pool))
                    if self._closed.is_set():
                        return
        except BaseException as error:  # whatever it is, the consumer must learn of it
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

    def _prepare(self, epoch: int, step: int, pool: ThreadPoolExecutor) -> Batch:
        everyones = self.order.step_slots(epoch, step)
        own = everyones[self._slice]
        raw = []
        for stream, block, index in zip(own.stream.tolist(), own.block.tolist(), own.index.tolist(), strict=True):
            raw.append(self._block(epoch, stream, block)[index])
        # Streams only move forward: what no rank reads in this step is behind us.
        current = {(epoch, *name) for name in zip(everyones.stream.tolist(), everyones.block.tolist(), strict=True)}
        for past in self._blocks.keys() - current:
            del self._blocks[past]
        self._doing = f"decoding step {step} of epoch {epoch}"
        pixels = list(pool.map(lambda sample: self._augment(sample, epoch), raw))
        images = stack_images(pixels)
        return Batch(
            images=images.pin_memory() if self.world.device.type == "cuda" else images,
            texts=cut_to_longest(tokenize([sample.caption for sample in raw], self.context_length)),
            keys=[sample.key for sample in raw],
            epoch=epoch,
            step=step,
        )

    def _block(self, epoch: int, stream: int, block: int) -> dict[int, RawSample]:
        """A block's samples by their global index, read when they are first asked for."""
        name = (epoch, stream, block)
        if name not in self._blocks:
            samples: dict[int, RawSample] = {}
            for piece in self.order.block_pieces(epoch, stream, block):
                self._doing = f"reading shard {self._reader.manifest.shards[piece.shard].name}"
                first = self.order.first_of_shard(piece.shard) + piece.first
                samples.update(enumerate(self._reader.read(piece.shard, piece.first, piece.stop), start=first))
            self._blocks[name] = samples
        return self._blocks[name]

    def _augment(self, sample: RawSample, epoch: int) -> NDArray[np.uint8]:
        """Random, and yet a function of (seed, epoch, key): the same at any world size and after any resume."""
        rng = random.Random(f"{self.order.seed}/{epoch}/{sample.key}")
        try:
            image = decode_image(sample.image, self.image_size_px)
        except ValueError as error:
            raise ValueError(f"sample {sample.key}: {error}") from error
        return train_crop(image, self.image_size_px, rng, self.config.crop_scale_min)

    def _check_budget(self) -> None:
        """All blocks that a rank may hold at once: those of its streams, its neighbours' at both ends, and the next ones."""
        streams = min(self.order.num_streams, -(-self.order.num_streams // self.world.world_size) + 2)
        block = min(self.order.block_size_samples, self.order.stream_length)
        needed = int(streams * block * self._reader.mean_sample_bytes())
        if needed > self.config.prefetch_bytes:
            raise ConfigError(
                f"data.prefetch_bytes={self.config.prefetch_bytes} is less than the {needed} bytes of the blocks that a rank "
                f"holds (about {streams} streams of {block} samples); raise it, or lower data.num_streams or "
                "data.block_size_samples"
            )


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
            yield EvaluationBatch(
                images=stack_images([eval_crop(decode_image(sample.image, image_size_px), image_size_px) for sample in raw]),
                texts=cut_to_longest(tokenize(captions, context_length)),
                keys=[sample.key for sample in raw],
                captions=captions,
                columns={} if table is None else table.slice(at, end - at).to_pydict(),
            )


def stack_images(pixels: list[NDArray[np.uint8]]) -> Tensor:
    """(H, W, 3) arrays -> uint8 (B, 3, H, W), contiguous."""
    # (B, H, W, C) -> (B, C, H, W)
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


def cut_to_longest(texts: Tensor) -> Tensor:
    """Drops the columns that are padding in every row; exact, since the text tower is causal."""
    return texts[:, : int((texts != 0).sum(dim=1).max())].contiguous()

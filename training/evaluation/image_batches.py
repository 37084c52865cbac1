"""Batches of an image set for evaluation: a rank's slice, read and decoded ahead of the model.

In: an `ImageSet`. Out: `ImageBatch`es in the order of the samples' index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.image_loading import load_eval_image
from pipeline.dataset.manifest import ManifestError
from training.data.shard_reader import RawSample
from training.distributed import World, slice_bounds
from training.evaluation.image_sets import ImageSet
from training.evaluation.repeats import key_of

BATCHES_AHEAD = 2
"""Batches that are read and decoded while the model works."""


@dataclass(frozen=True)
class ImageBatch:
    """Neighbouring samples.

    Attributes:
        first: index of the first sample.
        images: uint8 (B, 3, H, W), centre crop, on the CPU.
        keys: of each image's pixels, if they were asked for.
    """

    first: int
    samples: list[RawSample]
    images: Tensor
    keys: list[bytes]


def read_batches(
    image_set: ImageSet, batch_size: int, image_size_px: int, world: World, with_keys: bool = False
) -> Iterator[ImageBatch]:
    """Yields a rank's contiguous slice of all samples, once, in order of their index.

    Raises:
        ManifestError: an image cannot be decoded.
    """

    def decoded(sample: RawSample) -> NDArray[np.uint8]:
        try:
            return load_eval_image(sample.image, image_size_px)
        except ValueError as error:
            raise ManifestError(f"{image_set.subject}: sample {sample.key}: {error}; restore it, or remove it") from None

    start, stop = slice_bounds(image_set.num_samples, world.rank, world.world_size)
    threads = max(1, torch.get_num_threads())
    with ThreadPoolExecutor(1, "evaluation-read") as reader, ThreadPoolExecutor(threads, "evaluation-decode") as decoders:

        def load(first: int) -> ImageBatch:
            samples = image_set.read(first, min(first + batch_size, stop))
            images = list(decoders.map(decoded, samples))
            keys = list(decoders.map(key_of, images)) if with_keys else []
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
            return ImageBatch(first, samples, pixels, keys)

        yield from _load_ahead(reader, load, range(start, stop, batch_size))


def _load_ahead(reader: ThreadPoolExecutor, load: Callable[[int], ImageBatch], firsts: range) -> Iterator[ImageBatch]:
    loading: deque[Future[ImageBatch]] = deque()
    for first in firsts:
        loading.append(reader.submit(load, first))
        if len(loading) > BATCHES_AHEAD:
            yield loading.popleft().result()
    while loading:
        yield loading.popleft().result()

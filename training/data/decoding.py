"""Undecoded samples to pixels and token ids, in threads.

In: encoded images, captions and seeds. Out: uint8 pixels (B, size, size, 3) and token ids.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.image_loading import load_train_image
from model.tokenizer import token_ids
from training.data.shard_reader import CHANGED, is_changed

CHUNK_SAMPLES = 16
"""Samples that a thread gets at a time: enough to make the hand-over cheap, few enough to keep all threads busy."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Everything that one training sample depends on.

    Attributes:
        seed: seed of the crop.
        sha256: the first bytes of the image's sha256; empty if unknown.
    """

    image: bytes
    caption: str
    seed: str
    sha256: bytes = b""


@dataclass(frozen=True)
class Transform:
    """Sizes of a decoded sample."""

    image_size_px: int
    context_length: int
    crop_scale_min: float


Part = tuple[NDArray[np.uint16], dict[int, str]]


def decode(samples: Sequence[Encoded], transform: Transform, pixels: NDArray[np.uint8]) -> Part:
    """Decodes into `pixels`, uint8 (B, size, size, 3).

    Returns:
        Token ids, uint16 (B, L), zero-padded and cut to the longest; and by place in `samples` what is wrong with an image,
        whose pixels are then undefined.
    """
    problems: dict[int, str] = {}
    for place, sample in enumerate(samples):
        rng = random.Random(sample.seed)
        if is_changed(sample.image, sample.sha256):
            problems[place] = CHANGED
            continue
        try:
            load_train_image(sample.image, transform.image_size_px, rng, transform.crop_scale_min, pixels[place])
        except ValueError as error:
            problems[place] = str(error)
    return cut_to_longest(token_ids([sample.caption for sample in samples], transform.context_length)), problems


class PendingBatch:
    """Samples that are being decoded."""

    def __init__(self, parts: list[tuple[int, Future[Part]]]) -> None:
        self._parts = parts

    def result(self) -> Part:
        """Waits for the samples. Returns token ids and problems as in `decode`."""
        texts: list[NDArray[np.uint16]] = []
        problems: dict[int, str] = {}
        for first, future in self._parts:
            ids, found = future.result()
            texts.append(ids)
            problems |= {first + place: problem for place, problem in found.items()}
        return stack_texts(texts), problems


class Decoder:
    """Decodes samples in threads: most of the work is done in C, without Python's lock."""

    def __init__(self, transform: Transform, num_threads: int = 1) -> None:
        self._transform = transform
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def submit(self, samples: Sequence[Encoded], pixels: NDArray[np.uint8]) -> PendingBatch:
        """Starts to decode samples into `pixels`."""
        parts = []
        for first in range(0, len(samples), CHUNK_SAMPLES):
            places = slice(first, first + CHUNK_SAMPLES)
            parts.append((first, self._pool.submit(decode, samples[places], self._transform, pixels[places])))
        return PendingBatch(parts)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def stack_texts(parts: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """Concatenates rows of token ids, padded to the longest."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])


def cut_to_longest(texts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Drops the columns that are padding in every row; exact, since the text tower is causal."""
    # Zero is a token too, the "!" of "$!$": a caption ends at its last token that is not zero, which is end-of-text.
    used = np.flatnonzero((texts != 0).any(axis=0))
    return texts[:, : int(used[-1]) + 1 if len(used) else 1]

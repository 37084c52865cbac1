"""Undecoded samples to pixels and token ids, in a thread or in worker processes.

In: encoded pictures, captions and seeds. Out: uint8 pixels (B, size, size, 3) and token ids. Pixels come back from a worker
through shared memory; a worker whose parent is gone ends itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from numpy.typing import NDArray

from model.decode import load_train_image
from model.tokenizer import token_ids

CHUNK_SAMPLES = 16
"""A worker gets so many at a time: enough that handing them over is cheap, and few enough that all workers have some."""


class DecodeError(RuntimeError):
    """A worker process died."""


@dataclass(frozen=True)
class Encoded:
    """What makes one training sample: a function of these alone.

    Attributes:
        seed: of the crop.
    """

    image: bytes
    caption: str
    seed: str


@dataclass(frozen=True)
class Transform:
    """What is made of every sample."""

    image_size_px: int
    context_length: int
    crop_scale_min: float


@dataclass(frozen=True)
class Decoded:
    """A batch, or a part of one.

    Attributes:
        pixels: uint8 (B, size, size, 3).
        texts: token ids, uint16 (B, L), zero-padded, cut to the longest.
        problems: place in the batch -> why its picture cannot be decoded; its pixels mean nothing.
    """

    pixels: NDArray[np.uint8]
    texts: NDArray[np.uint16]
    problems: dict[int, str]


def decode(
    samples: Sequence[Encoded], transform: Transform, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], dict[int, str]]:
    """Decodes into `pixels` and returns token ids and problems, as in `Decoded`."""
    problems: dict[int, str] = {}
    for place, sample in enumerate(samples):
        rng = random.Random(sample.seed)
        try:
            pixels[place] = load_train_image(sample.image, transform.image_size_px, rng, transform.crop_scale_min)
        except ValueError as error:
            problems[place] = str(error)
    return cut_to_longest(token_ids([sample.caption for sample in samples], transform.context_length)), problems


class PendingBatch:
    """A batch that is being decoded."""

    def __init__(
        self, pixels: NDArray[np.uint8], parts: list[tuple[int, Future[tuple[NDArray[np.uint16], dict[int, str]]]]]
    ) -> None:
        self._pixels, self._parts = pixels, parts

    def result(self) -> Decoded:
        """Waits for it. `pixels` may be shared memory, which `Decoder.release` takes back. Raises DecodeError."""
        texts: list[NDArray[np.uint16]] = []
        problems: dict[int, str] = {}
        try:
            for first, future in self._parts:
                ids, found = future.result()
                texts.append(ids)
                problems |= {first + place: problem for place, problem in found.items()}
        except BrokenProcessPool:
            raise DecodeError(
                "a decode worker died; if the machine ran out of memory, lower data.decode_workers or data.prefetch_bytes"
            ) from None
        return Decoded(self._pixels, stack_texts(texts), problems)


class Decoder:
    """Decodes batches, one thread or several processes at work."""

    def __init__(self, transform: Transform, batch_size: int, num_workers: int) -> None:
        """Args:
        batch_size: the most samples of one batch.
        num_workers: processes; 0 decodes in a thread of this one.
        """
        self._transform = transform
        self._shape = (batch_size, transform.image_size_px, transform.image_size_px, 3)
        self._num_workers = num_workers
        self._shared: dict[int, SharedMemory] = {}  # by the address of the array that lies in it
        self._free: list[NDArray[np.uint8]] = []
        self._pool: Executor
        if num_workers:
            context = multiprocessing.get_context("spawn")  # forking a process that has threads or a GPU is not safe
            self._pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(os.getpid(),))
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def submit(self, samples: Sequence[Encoded]) -> PendingBatch:
        """Starts to decode a batch."""
        if not self.is_shared:
            pixels = np.empty((len(samples), *self._shape[1:]), dtype=np.uint8)
            return PendingBatch(pixels, [(0, self._pool.submit(decode, samples, self._transform, pixels))])
        buffer = self._free.pop() if self._free else self._share()
        name = self._shared[buffer.ctypes.data].name
        parts = []
        for first in range(0, len(samples), CHUNK_SAMPLES):
            chunk = samples[first : first + CHUNK_SAMPLES]
            parts.append((first, self._pool.submit(_decode_shared, chunk, self._transform, name, self._shape, first)))
        return PendingBatch(buffer[: len(samples)], parts)

    def release(self, decoded: Decoded) -> None:
        """Takes back a batch's pixels, which may be overwritten from here."""
        if self.is_shared:
            address = decoded.pixels.ctypes.data
            self._free.append(np.ndarray(self._shape, dtype=np.uint8, buffer=self._shared[address].buf))

    def close(self) -> None:
        """Ends the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._free.clear()
        for memory in self._shared.values():
            memory.unlink()
        for memory in self._shared.values():
            _close(memory)
        self._shared.clear()

    @property
    def is_shared(self) -> bool:
        """Whether a batch's pixels lie in memory that `release` gives to another batch."""
        return self._num_workers > 0

    def worker_ids(self) -> list[int]:
        """Process ids of the workers; none where a thread decodes."""
        processes = self._pool._processes if isinstance(self._pool, ProcessPoolExecutor) else None
        return sorted(processes or ())

    def _share(self) -> NDArray[np.uint8]:
        memory = SharedMemory(create=True, size=int(np.prod(self._shape)))
        buffer: NDArray[np.uint8] = np.ndarray(self._shape, dtype=np.uint8, buffer=memory.buf)
        self._shared[buffer.ctypes.data] = memory
        return buffer


def stack_texts(parts: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """Rows of token ids under each other, padded to the longest."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])


def cut_to_longest(texts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Drops the columns that are padding in every row; exact, since the text tower is causal."""
    return texts[:, : int((texts != 0).sum(axis=1).max(initial=1))]


# ------------------------------------------------------------------------------------------------------------ in a worker

_ATTACHED: dict[str, SharedMemory] = {}


def _decode_shared(
    samples: Sequence[Encoded], transform: Transform, name: str, shape: tuple[int, ...], first: int
) -> tuple[NDArray[np.uint16], dict[int, str]]:
    if name not in _ATTACHED:
        _ATTACHED[name] = SharedMemory(name)
    pixels: NDArray[np.uint8] = np.ndarray(shape, dtype=np.uint8, buffer=_ATTACHED[name].buf)
    return decode(samples, transform, pixels[first : first + len(samples)])


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed closes nothing: its workers would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _close(memory: SharedMemory) -> None:
    with contextlib.suppress(BufferError):  # a batch that somebody still holds keeps its memory until it goes
        memory.close()

"""Undecoded samples to pixels and token ids, in a thread or in worker processes.

In: encoded images, captions and seeds. Out: uint8 pixels (B, size, size, 3) and token ids. Workers return pixels through
shared memory, and exit when their parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from numpy.typing import NDArray

from model.image_loading import load_train_image
from model.tokenizer import token_ids
from training.data.shard_reader import CHANGED, is_changed

CHUNK_SAMPLES = 16
"""Samples that a worker gets at a time: enough to make the hand-over cheap, few enough to keep all workers busy."""

_DIED = "a decode worker died; if the machine ran out of memory, lower data.decode_workers or data.prefetch_bytes"


class DecodeError(RuntimeError):
    """A worker process died."""


@dataclass(frozen=True)
class Encoded:
    """Everything that one training sample depends on.

    Attributes:
        seed: seed of the crop.
        sha256: the first bytes of the image's sha256; empty if unknown.
    """

    image: bytes | memoryview
    caption: str
    seed: str
    sha256: bytes = b""


@dataclass(frozen=True)
class Transform:
    """Sizes of a decoded sample."""

    image_size_px: int
    context_length: int
    crop_scale_min: float


@dataclass(frozen=True)
class Decoded:
    """A batch, or a part of one.

    Attributes:
        pixels: uint8 (B, size, size, 3).
        texts: token ids, uint16 (B, L), zero-padded, cut to the longest.
        problems: place in the batch -> what is wrong with its image; its pixels are undefined.
    """

    pixels: NDArray[np.uint8]
    texts: NDArray[np.uint16]
    problems: dict[int, str]


def decode(
    samples: Sequence[Encoded], transform: Transform, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], dict[int, str]]:
    """Decodes into `pixels`, and returns token ids and problems as in `Decoded`."""
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


Part = tuple[NDArray[np.uint16], dict[int, str]]


class PendingBatch:
    """A batch that is being decoded."""

    def __init__(self, pixels: NDArray[np.uint8], parts: list[tuple[int, Future[Part]]], done: Callable[[], object]) -> None:
        self._pixels, self._parts, self._done = pixels, parts, done

    def result(self) -> Decoded:
        """Waits for the batch. Raises DecodeError."""
        texts: list[NDArray[np.uint16]] = []
        problems: dict[int, str] = {}
        try:
            for first, future in self._parts:
                ids, found = future.result()
                texts.append(ids)
                problems |= {first + place: problem for place, problem in found.items()}
        except BrokenProcessPool:
            raise DecodeError(_DIED) from None
        self._done()
        return Decoded(self._pixels, stack_texts(texts), problems)


class Decoder:
    """Decodes batches in one thread or in several processes."""

    def __init__(self, transform: Transform, num_workers: int) -> None:
        """Args:
        num_workers: processes; 0: decode in a thread of this process.
        """
        self._transform = transform
        self._blocks = _SharedBlocks()
        self._pool: Executor
        if num_workers:
            context = multiprocessing.get_context("spawn")  # forking a process that has threads or a GPU is not safe
            self._pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(os.getpid(),))
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def submit(self, samples: Sequence[Encoded]) -> PendingBatch:
        """Starts to decode a batch."""
        shape = (len(samples), self._transform.image_size_px, self._transform.image_size_px, 3)
        if isinstance(self._pool, ThreadPoolExecutor):
            pixels = np.empty(shape, dtype=np.uint8)
            return PendingBatch(pixels, [(0, self._pool.submit(decode, samples, self._transform, pixels))], lambda: None)
        into = self._blocks.take(int(np.prod(shape)))
        memory = np.frombuffer(_memory(into), dtype=np.uint8, count=int(np.prod(shape)))
        weakref.finalize(memory, self._blocks.give_back, into)  # once the batch is released
        pixels = memory.reshape(shape)
        source = self._blocks.take(sum(len(sample.image) for sample in samples))
        parts, begin = [], 0
        for first in range(0, len(samples), CHUNK_SAMPLES):
            chunk = samples[first : first + CHUNK_SAMPLES]
            task = _Task(source.name, begin, [len(sample.image) for sample in chunk], into.name, shape, first)
            for sample in chunk:
                _memory(source)[begin : begin + len(sample.image)] = sample.image
                begin += len(sample.image)
            without = [replace(sample, image=b"") for sample in chunk]
            try:
                parts.append((first, self._pool.submit(_decode_shared, task, without, self._transform)))
            except BrokenProcessPool:
                raise DecodeError(_DIED) from None
        return PendingBatch(pixels, parts, lambda: self._blocks.give_back(source))

    def close(self) -> None:
        """Ends the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._blocks.close()

    def worker_ids(self) -> list[int]:
        """Returns the process ids of the workers; none if a thread decodes."""
        processes = self._pool._processes if isinstance(self._pool, ProcessPoolExecutor) else None
        return sorted(processes or ())


class _SharedBlocks:
    """Reusable shared memory: it carries images to the workers, and pixels back."""

    def __init__(self) -> None:
        self._all: list[SharedMemory] = []
        self._free: list[SharedMemory] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> SharedMemory:
        """Returns a free or new block of at least `size` bytes and at most about twice as many."""
        with self._lock:
            for place, block in enumerate(self._free):
                if size <= block.size <= 2 * size:
                    return self._free.pop(place)
            block = SharedMemory(create=True, size=int(1.25 * size) + 1)
            self._all.append(block)
            return block

    def give_back(self, block: SharedMemory) -> None:
        with self._lock:
            self._free.append(block)

    def close(self) -> None:
        for block in self._all:
            block.unlink()
            try:
                block.close()
            except BufferError:  # a batch is still in use; its memory is freed with it
                block.close = lambda: None  # type: ignore[method-assign]
        self._all.clear()


def stack_texts(parts: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """Concatenates rows of token ids, padded to the longest."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])


def cut_to_longest(texts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Drops the columns that are padding in every row; exact, since the text tower is causal."""
    # Zero is a token too, the "!" of "$!$": a caption ends at its last token that is not zero, which is end-of-text.
    used = np.flatnonzero((texts != 0).any(axis=0))
    return texts[:, : int(used[-1]) + 1 if len(used) else 1]


# ------------------------------------------------------------------------------------------------------------ in a worker

_ATTACHED: dict[str, SharedMemory] = {}


@dataclass(frozen=True)
class _Task:
    """The shared memory that a worker reads images from and writes pixels to.

    Attributes:
        source, begin, sizes: the block that holds the images, the offset of the first one, and their sizes in bytes.
        into, shape, first: the block and shape of the whole batch, and the first row to write.
    """

    source: str
    begin: int
    sizes: list[int]
    into: str
    shape: tuple[int, ...]
    first: int


def _decode_shared(task: _Task, samples: Sequence[Encoded], transform: Transform) -> Part:
    source, begin, whole = _memory(_attach(task.source)), task.begin, []
    for sample, size in zip(samples, task.sizes, strict=True):
        whole.append(replace(sample, image=source[begin : begin + size]))
        begin += size
    pixels: NDArray[np.uint8] = np.ndarray(task.shape, dtype=np.uint8, buffer=_memory(_attach(task.into)))
    return decode(whole, transform, pixels[task.first : task.first + len(whole)])


def _attach(name: str) -> SharedMemory:
    if name not in _ATTACHED:
        _ATTACHED[name] = SharedMemory(name)
    return _ATTACHED[name]


def _memory(block: SharedMemory) -> memoryview:
    assert block.buf is not None  # it is open
    return block.buf


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Exits with the parent: a killed one closes nothing, and its workers would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

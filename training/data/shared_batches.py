"""The pixels of whole batches in shared memory: worker processes write them, the training process wraps them in tensors.

In: the shape of a rank's batch. Out: arrays whose memory is reused once a batch is released. On a GPU's host the memory is
pinned, so nothing copies it before it goes to the device.
"""

from __future__ import annotations

import logging
import threading
import weakref
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class SharedBatches:
    """Reusable blocks of shared memory, each as large as one batch."""

    def __init__(self, shape: tuple[int, ...], pinned: bool = False) -> None:
        """Args:
        shape: of a batch of uint8 pixels.
        pinned: for asynchronous copies to a GPU.
        """
        self._shape, self._pinned = shape, pinned
        self._all: list[SharedMemory] = []
        self._free: list[SharedMemory] = []
        self._lock = threading.Lock()

    def take(self) -> tuple[str, NDArray[np.uint8]]:
        """Returns the name and the pixels of a free or new block. It is free again when the pixels are garbage."""
        size = int(np.prod(self._shape))
        with self._lock:
            block = self._free.pop() if self._free else self._create(size)
        memory = np.frombuffer(buffer_of(block), dtype=np.uint8, count=size)
        weakref.finalize(memory, self._free.append, block)
        return block.name, memory.reshape(self._shape)

    def close(self) -> None:
        """Removes the blocks. Those in use stay in memory until they are released."""
        for block in self._all:
            block.unlink()
            if self._pinned:
                torch.cuda.cudart().cudaHostUnregister(_address(block))
            try:
                block.close()
            except BufferError:  # a batch is still in use; its memory is freed with it
                block.close = lambda: None  # type: ignore[method-assign]
        self._all.clear()

    def _create(self, size: int) -> SharedMemory:
        block = SharedMemory(create=True, size=size)
        self._all.append(block)
        if self._pinned and (code := int(torch.cuda.cudart().cudaHostRegister(_address(block), block.size, 0))):
            self._pinned = False
            logger.warning("batches in shared memory cannot be pinned (CUDA error %d); copies to the GPU are slower", code)
        return block


class AttachedBatches:
    """The same blocks in a worker process."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._blocks: dict[str, SharedMemory] = {}

    def pixels(self, name: str) -> NDArray[np.uint8]:
        if name not in self._blocks:
            self._blocks[name] = SharedMemory(name)
        return np.ndarray(self._shape, dtype=np.uint8, buffer=buffer_of(self._blocks[name]))


def buffer_of(block: SharedMemory) -> memoryview:
    assert block.buf is not None  # it is open
    return block.buf


def _address(block: SharedMemory) -> int:
    return np.frombuffer(buffer_of(block), dtype=np.uint8).ctypes.data

"""The pixels of whole batches in shared memory: worker processes write them, the training process wraps them in tensors.

In: the shape of a rank's batch. Out: arrays whose memory is reused once a batch is released. On a GPU's host the memory is
pinned, so nothing copies it before it goes to the device.
"""

from __future__ import annotations

import logging
import shutil
import threading
import weakref
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
"""The place of shared memory on Linux."""


class SharedBatches:
    """Reusable blocks of shared memory, each as large as one batch."""

    def __init__(self, shape: tuple[int, ...], pinned: bool = False) -> None:
        """Args:
        shape: of a batch of uint8 pixels.
        pinned: for asynchronous copies to a GPU.
        """
        self._shape, self._pinned = shape, pinned
        self._all: list[SharedMemory] = []
        self._registered: list[int] = []  # addresses that CUDA knows
        self._free: list[SharedMemory] = []
        self._lock = threading.Lock()

    def take(self) -> tuple[str, NDArray[np.uint8]]:
        """Returns the name and the pixels of a free or new block. It is free again when the pixels are garbage.

        Raises:
            ConfigError: there is not enough shared memory.
        """
        size = int(np.prod(self._shape))
        with self._lock:
            block = self._free.pop() if self._free else self._create(size)
        memory = np.frombuffer(buffer_of(block), dtype=np.uint8, count=size)
        weakref.finalize(memory, self._free.append, block)
        return block.name, memory.reshape(self._shape)

    def close(self) -> None:
        """Removes the blocks. Those in use stay in memory until they are released."""
        for address in self._registered:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._registered.clear()
        for block in self._all:
            block.unlink()
            try:
                block.close()
            except BufferError:  # a batch is still in use; its memory is freed with it
                block.close = lambda: None  # type: ignore[method-assign]
        self._all.clear()

    def _create(self, size: int) -> SharedMemory:
        free = shutil.disk_usage(FOLDER).free if FOLDER.exists() else size
        if free < size:  # a process that writes to memory that is not there is killed
            raise ConfigError(
                f"data.prefetch_batches: {len(self._all)} batches of {size} bytes fill {FOLDER}, which has {free} left; "
                "enlarge it (docker run --shm-size=..., in a pod an emptyDir of medium Memory), lower data.prefetch_batches, "
                "or set data.decode_workers=0"
            )
        block = SharedMemory(create=True, size=size)
        self._all.append(block)
        if self._pinned:
            self._pin(block)
        return block

    def _pin(self, block: SharedMemory) -> None:
        address = np.frombuffer(buffer_of(block), dtype=np.uint8).ctypes.data
        code = int(torch.cuda.cudart().cudaHostRegister(address, block.size, 0))
        if code == 0:
            self._registered.append(address)
        else:
            self._pinned = False
            logger.warning("batches in shared memory cannot be pinned (CUDA error %d); copies to the GPU are slower", code)


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

"""Blocks of shared memory are not overwritten while in use, reused afterwards, and removed in the end."""

from collections import namedtuple
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from training.data import shared_batches
from training.data.shared_batches import AttachedBatches, SharedBatches

SHAPE = (4, 8, 8, 3)


@pytest.fixture
def batches():
    batches = SharedBatches(SHAPE)
    yield batches
    batches.close()


def exists(name: str) -> bool:
    try:
        SharedMemory(name).close()
    except FileNotFoundError:
        return False
    return True


def test_another_process_writes_into_the_same_memory(batches):
    name, pixels = batches.take()
    attached = AttachedBatches(SHAPE)
    attached.pixels(name)[1:3] = 7
    assert pixels.shape == SHAPE
    assert (pixels[1:3] == 7).all()


def test_a_batch_in_use_is_not_taken_again_and_a_released_one_is(batches):
    names, held = [], []
    for number in range(3):
        name, pixels = batches.take()
        pixels[:] = number
        names.append(name)
        held.append(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    del pixels
    assert len(set(names)) == 3
    assert [int(one.max()) for one in held] == [0, 1, 2]
    held.clear()
    assert batches.take()[0] in names


def test_close_removes_the_memory_and_leaves_a_batch_in_use_readable():
    batches = SharedBatches(SHAPE)
    name, pixels = batches.take()
    pixels[:] = 5
    assert exists(name)
    batches.close()
    assert not exists(name)
    assert (pixels == 5).all()


def test_too_little_shared_memory_is_refused_before_a_write_kills_a_process(batches, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shared_batches.shutil, "disk_usage", lambda _: usage(100))
    with pytest.raises(ConfigError, match=r"data\.prefetch_batches: 0 batches of 768 bytes fill /dev/shm, which has 100 left"):
        batches.take()


class _Cuda:
    """Host registration of torch's CUDA runtime."""

    def __init__(self, code: int) -> None:
        self.code, self.registered = code, {}

    def cudaHostRegister(self, address, size, flags):  # noqa: N802 (CUDA's name)
        self.registered[address] = size
        return self.code

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]
        return 0


def test_pinned_memory_is_registered_once_a_block_and_given_back(monkeypatch):
    cuda = _Cuda(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    batches = SharedBatches(SHAPE, pinned=True)
    for _ in range(3):
        _, pixels = batches.take()
        assert cuda.registered[pixels.ctypes.data] >= np.prod(SHAPE)
        del pixels
    assert len(cuda.registered) == 1
    batches.close()
    assert not cuda.registered


def test_memory_that_cannot_be_pinned_is_used_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: _Cuda(2))
    batches = SharedBatches(SHAPE, pinned=True)
    assert batches.take()[1].shape == SHAPE
    assert "cannot be pinned (CUDA error 2)" in caplog.text
    batches.close()

"""Peak memory of a part of a process: the allocator's on CUDA, resident memory on a CPU (Linux)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Peak:
    """The largest amount of memory in use at a time, above that at the start: `bytes`, once the context has ended."""

    bytes = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measures the memory that the block adds at its peak."""
    import torch

    peak = Peak()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated() - before
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the block reuses what was freed before it
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    yield peak
    peak.bytes = _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

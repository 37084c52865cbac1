"""Seconds of a function on a device: CUDA events around repetitions that do not wait for each other, a clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds_of(function: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of one call, after one that is not counted."""
    import torch

    function()
    if device != "cuda":
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - began) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats

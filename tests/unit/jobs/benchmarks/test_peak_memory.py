"""Peak memory of a block."""

import torch

from jobs.benchmarks.peak_memory import peak_memory


def test_memory_that_is_freed_inside_the_block_counts_and_that_before_it_does_not():
    kept = torch.ones(16 << 20, dtype=torch.uint8)
    with peak_memory("cpu") as peak:
        torch.ones(64 << 20, dtype=torch.uint8)
    assert 60 << 20 <= peak.bytes < 110 << 20
    assert len(kept)

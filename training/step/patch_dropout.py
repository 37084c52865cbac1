"""Patch dropout (FLIP, arXiv 2212.00794): a random choice of an image's patches that is a function of the sample's seed.

So a batch is the same at any world size and after any resume.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def kept_patches(seeds_B: Tensor, num_patches: int, dropout: float) -> Tensor:
    """Indices (B, P), ascending, of the round((1 - dropout) * num_patches) patches that each image keeps, at least one.

    Args:
        seeds_B: int64, one for each sample and epoch.
    """
    kept = max(1, round(num_patches * (1 - dropout)))
    # Each patch gets a number from its sample's splitmix64 sequence (Steele et al., OOPSLA 2014); the smallest are kept.
    count = np.arange(1, num_patches + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    number = seeds_B.numpy().view(np.uint64)[:, None] + count
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    number ^= number >> np.uint64(31)
    chosen = np.argpartition(number, kept - 1, axis=1)[:, :kept] if kept < num_patches else number.argsort(axis=1)
    return torch.from_numpy(np.sort(chosen, axis=1).astype(np.int64))

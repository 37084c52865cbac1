"""Retrieval between images and texts: recall at 1, 5 and 10, both ways, in tiles."""

from __future__ import annotations

import torch
from torch import Tensor

RANKS = (1, 5, 10)


def retrieval_ranks(query_NE: Tensor, key_ME: Tensor, answer_N: Tensor, tile_size: int = 1024) -> Tensor:
    """How many keys score at least as high as each query's right one, itself not counted: (N,), 0 is a hit at 1.

    A tie counts against us: a model that gives every pair the same score finds nothing.

    Args:
        query_NE, key_ME: normalised features.
        answer_N: for each query the index of its right key.
        tile_size: queries that are compared at a time; no N x M matrix is stored.
    """
    ranks = []
    for query, answer in zip(query_NE.split(tile_size), answer_N.split(tile_size), strict=True):
        similarity = query @ key_ME.T
        right = similarity.gather(1, answer[:, None])
        # Not lower, rather than at least as high: a score that is no number must not count as a hit.
        ranks.append((~(similarity < right)).sum(dim=1) - 1)
    return torch.cat(ranks)


def recalls(ranks_N: Tensor, prefix: str) -> dict[str, float]:
    """Share of the queries whose right key is among the first 1, 5 and 10."""
    return {f"{prefix}_r{rank}": float((ranks_N < rank).double().mean()) for rank in RANKS}


def retrieval_metrics(image_features_NE: Tensor, text_features_NE: Tensor, tile_size: int = 1024) -> dict[str, float]:
    """R@1, R@5 and R@10 of N pairs, both ways."""
    answer_N = torch.arange(len(image_features_NE), device=image_features_NE.device)
    to_text = retrieval_ranks(image_features_NE, text_features_NE, answer_N, tile_size)
    to_image = retrieval_ranks(text_features_NE, image_features_NE, answer_N, tile_size)
    return recalls(to_text, "image_to_text") | recalls(to_image, "text_to_image")

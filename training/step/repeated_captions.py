"""Captions that repeat within a global batch: which samples share one, and how many do.

In: the token ids of this rank's slice, on the CPU. Out: a number for the caption of each sample of the global batch, the same
on every rank. Captions are the same if their token ids are: then so are their text features. Ranks compare 128-bit hashes of
them, 16 bytes a sample, and number them without waiting for the device.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from model.layers import to_device
from training.distributed import World, gather_rows


def number_captions(texts_BL: Tensor, global_batch_size: int, world: World) -> Tensor:
    """Numbers of the captions of the global batch: int64 (G,), from 0 without gaps, equal for equal captions.

    Every rank calls it.

    Args:
        texts_BL: token ids of this rank's slice, zero-padded, on the CPU; ranks may have cut them to different lengths.
    """
    digests_B2 = to_device(_digests(texts_BL), world.device)
    return _number_rows(gather_rows(digests_B2, global_batch_size, world))


def repeated_share(caption_G: Tensor) -> float:
    """Share of the samples whose caption an earlier sample of the batch has too: 0 if all differ, (G - 1) / G if none do.

    Waits for the device.
    """
    return (len(caption_G) - int(caption_G.max()) - 1) / len(caption_G)


def _digests(texts_BL: Tensor) -> Tensor:
    """128-bit hashes of the token ids without padding: int64 (B, 2)."""
    ids_BL = texts_BL.numpy().astype("<u2")
    # Zero is a token too: a caption ends at end-of-text, the largest id.
    lengths_B = ids_BL.argmax(axis=1) + 1
    rows = zip(ids_BL, lengths_B.tolist(), strict=True)
    digests = b"".join(hashlib.blake2b(row[:length], digest_size=16).digest() for row, length in rows)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").reshape(-1, 2).copy())


def _number_rows(rows_G2: Tensor) -> Tensor:
    """Numbers of the distinct rows, by sorting: torch.unique would wait for the device to know how many there are."""
    order_G = rows_G2[:, 1].argsort()
    order_G = order_G[rows_G2[order_G, 0].argsort(stable=True)]
    sorted_G2 = rows_G2[order_G]
    is_new = (sorted_G2[1:] != sorted_G2[:-1]).any(dim=1)
    number_G = torch.zeros_like(order_G)
    number_G[1:] = is_new.cumsum(0)
    return torch.empty_like(number_G).scatter_(0, order_G, number_G)

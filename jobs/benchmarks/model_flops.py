"""Counts the floating-point operations that a batch needs, so that two implementations are rated by the same work.

In: an architecture and the lengths of its captions. Out: operations of forward and backward, without padding, without anything
that is computed twice, and without what the result does not depend on (all but one token of a tower's last block).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.config import Architecture

if TYPE_CHECKING:
    import torch

PEAK_BFLOAT16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense FLOPS of the SXM boards, by a part of the device's name (NVIDIA's data sheets)."""


def batch_flops(architecture: Architecture, caption_lengths: Sequence[int]) -> float:
    """Operations of one step's two towers: matrix products, convolutions and attention, over all pairs.

    Args:
        caption_lengths: tokens of each pair's caption, special tokens included.
    """
    import numpy as np
    import torch

    from model.clip import uninitialized_clip

    clip, size = uninitialized_clip(architecture), architecture.image_size_px

    def of_caption(length: int) -> int:
        texts = torch.ones(1, length, dtype=torch.int64)
        texts[0, -1] = architecture.vocab_size - 1  # end-of-text
        return _count(lambda: clip.encode_text(texts))

    of_image = _count(lambda: clip.encode_image(torch.zeros(1, 3, size, size)))
    # Projections are linear in a caption's length, attention is quadratic: three lengths determine the polynomial.
    known = np.array([2, 3, 5])
    polynomial = np.linalg.solve(np.vander(known, 3), [of_caption(int(length)) for length in known])
    lengths = np.asarray(caption_lengths, dtype=np.float64)
    return float(of_image * len(lengths) + np.polyval(polynomial, lengths).sum())


def utilisation(flops_per_s: float, device_name: str) -> float | None:
    """Share of the device's peak in bfloat16 (MFU); None for a device that is not in the table."""
    peak = next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in device_name), None)
    return None if peak is None else flops_per_s / peak


def _count(forward: Callable[[], torch.Tensor]) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # As plain matrix products, which every version of the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward().float().sum().backward()
    return int(counter.get_total_flops())

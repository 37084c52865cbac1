"""The machine and the limits that no code exceeds: versions, matrix products at the model's shapes, copies."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

from jobs.benchmarks.model_flops import utilisation
from jobs.qualification.judgement import ON_CUDA, Aim, Figure
from jobs.qualification.scale import Scale
from jobs.qualification.stopwatch import seconds_of

SHAPES = {
    "image in_proj": (1024 * 50, 768, 2304),
    "image out_proj": (1024 * 50, 768, 768),
    "image c_fc": (1024 * 50, 768, 3072),
    "image c_proj": (1024 * 50, 3072, 768),
    "text c_fc": (1024 * 13, 512, 2048),
    "text c_proj": (1024 * 13, 2048, 512),
}
"""Rows, inner and outer width of the products of ViT-B/32, for 1,024 pairs with captions of 13 tokens."""
LOSS_SHAPE = (4096, 512, 32_768)


def versions(scale: Scale) -> Iterator[Figure]:
    """Versions of Python, torch and CUDA, and the card."""
    import torch

    yield Figure("python", platform.python_version())
    yield Figure("torch", torch.__version__)
    yield Figure("CUDA of torch", torch.version.cuda or "none")
    yield Figure("CPUs", len(os.sched_getaffinity(0)))
    yield Figure("card", scale.card)
    if scale.device == "cuda":
        row = torch.cuda.get_device_properties(0)
        yield Figure("memory", row.total_memory / 2**30, "GiB")
        yield Figure("compute capability", f"{row.major}.{row.minor}")
        yield Figure("multiprocessors", row.multi_processor_count)
        yield Figure("bfloat16", "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated")
        yield Figure("cuDNN", str(torch.backends.cudnn.version()))


def products(scale: Scale) -> Iterator[Figure]:
    """Achieved rate of the products that a step consists of, of copies, and of the loss's products with and without TF32."""
    import torch

    dtype = getattr(torch, scale.precision)
    repeats = scale.size(20, 2)
    for name, shape in SHAPES.items():
        yield Figure(f"{name}, {dtype}".replace("torch.", ""), _product_rate(shape, dtype, scale, repeats), "TFLOP/s")
    best = _product_rate(scale.size((8192, 8192, 8192), (64, 64, 64)), dtype, scale, repeats)
    yield Figure("largest product", best, "TFLOP/s")
    share = utilisation(best * 1e12, scale.card)
    if share is not None:
        yield Figure("largest product, share of the peak", share, aim=Aim(least=0.6, on=ON_CUDA))
    yield from _copies(scale, repeats)
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        rate = _product_rate(LOSS_SHAPE, torch.float32, scale, repeats)
        yield Figure(f"the loss's product, {'TF32' if allowed else 'float32'}", rate, "TFLOP/s")


def _product_rate(shape: tuple[int, int, int], dtype: object, scale: Scale, repeats: int) -> float:
    """TFLOP/s of a product."""
    import torch

    rows, inner, outer = (scale.size(side, max(1, side // 64)) for side in shape)
    left = torch.randn(rows, inner, device=scale.device, dtype=dtype)  # type: ignore[call-overload]
    right = torch.randn(inner, outer, device=scale.device, dtype=dtype)  # type: ignore[call-overload]
    return 2 * rows * inner * outer / seconds_of(lambda: left @ right, scale.device, repeats) / 1e12


def _copies(scale: Scale, repeats: int) -> Iterator[Figure]:
    import torch

    size = scale.size(1 << 30, 1 << 20)
    source = torch.zeros(size, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    rate = 2 * size / seconds_of(lambda: target.copy_(source), scale.device, repeats)
    yield Figure("copy on the device, read and written", rate / 1e12, "TB/s")
    if scale.device == "cuda":
        pinned = torch.zeros(size, dtype=torch.uint8).pin_memory()
        rate = size / seconds_of(lambda: target.copy_(pinned, non_blocking=True), scale.device, repeats)
        yield Figure("copy from pinned memory", rate / 1e9, "GB/s")

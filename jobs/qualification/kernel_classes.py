"""Time of a step by kind of kernel, and the kernels that attention runs on: by torch's profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import OurSide
from jobs.qualification.judgement import Figure
from jobs.qualification.memory_fit import whole_batch
from jobs.qualification.scale import Scale

CLASSES = {
    "communication": r"nccl",
    "attention": r"flash|fmha|mem_eff|attention|sdpa",
    "convolution": r"conv|wgrad|dgrad|implicit_gemm|winograd",
    "matrix product": r"gemm|gemv|cutlass|nvjet|cublas|xmma|::(add)?mm\b|::bmm\b",
    "optimizer": r"adam|multi_tensor",
    "compiled": r"triton",
    "norm": r"norm",
    "softmax and sums": r"softmax|reduce|::sum|logsumexp|cumsum|sort|argmax|::max",
    "copy, cast, fill": r"memcpy|memset|copy|fill|CatArray|::cat\b|::zero|::clone",
    "gather and scatter": r"index|gather|scatter|embedding",
    "pointwise": r"elementwise|vectorized|::(mul|add|sub|div|sigmoid|gelu|exp|silu)",
}
"""Kind -> pattern of kernel names, the first that matches; names of operations on a CPU likewise."""
OTHER = "other"


def profile(scale: Scale) -> Iterator[Figure]:
    """Milliseconds of a step by kind, the share of the time in which the device computes, and attention's kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from model.clip import build_clip

    setting = whole_batch(scale, scale.model, scale.size(1024, 8))
    steps = scale.size(3, 1)
    side = OurSide(setting, build_clip(setting.name))
    activity = ProfilerActivity.CUDA if scale.device == "cuda" else ProfilerActivity.CPU
    with ReadyBatches(setting, 2 + steps)(side) as batches:
        for _ in range(2):
            side.step(*next(batches))
        with profiled(activities=[activity]) as profiler:
            for _ in range(steps):
                side.step(*next(batches))
            side.step(*next(batches)).item()  # so that the last kernels are recorded
    spans = list(kernel_spans(profiler, scale.device))
    by_class: dict[str, float] = defaultdict(float)
    for name, start, end in spans:
        by_class[kernel_class(name)] += (end - start) / 1e3 / (steps + 1)
    for name, milliseconds in sorted(by_class.items(), key=lambda pair: -pair[1]):
        yield Figure(name, milliseconds, "ms")
    yield Figure("all kernels", sum(by_class.values()), "ms")
    if scale.device == "cuda":
        yield Figure("share of the time in which the device computes", busy_share(spans))
    for name in sorted({name for name, _, _ in spans if kernel_class(name) == "attention"}):
        yield Figure("kernel of attention", name[:120])


def kernel_class(name: str) -> str:
    """The kind of a kernel, by its name."""
    found = (kind for kind, pattern in CLASSES.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, OTHER)


def kernel_spans(profiler: Any, device: str) -> Iterator[tuple[str, float, float]]:
    """(name, start, end) in microseconds of all kernels; on a CPU, of operations, without the time of those inside."""
    from torch.autograd import DeviceType

    for event in profiler.events():
        start = event.time_range.start
        if device == "cuda" and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            yield event.name, start, event.time_range.end
        elif device != "cuda" and event.name.startswith("aten::"):
            yield event.name, start, start + event.self_cpu_time_total


def busy_share(spans: Iterable[tuple[str, float, float]]) -> float:
    """Share of the time from the first kernel's start to the last one's end in which any ran."""
    ordered = sorted((start, end) for _, start, end in spans)
    if not ordered:
        return 0.0
    first, reached, busy = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - first) if reached > first else 1.0

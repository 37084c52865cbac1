"""The largest micro-batch that fits: what a sample's forward pass keeps for the backward pass, against what memory is left.

In: a model on its device. Out: samples, the same on all ranks. A probe of four samples is counted, so it costs no failed step.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from model.clip import CLIP
from training.distributed import World

FREE_SHARE = 0.6
"""Of the memory that is left after gradients and moments; the rest is for temporaries, batches and fragments."""


def resolve_micro_batch_size(
    wish: int | str | None,
    clip: CLIP,
    world: World,
    global_batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> int | None:
    """Samples that a rank embeds at a time, `auto` resolved; None where that is the whole slice. Every rank calls it."""
    longest = -(-global_batch_size // world.world_size)
    if wish is None:
        return None
    if isinstance(wish, int):
        return wish if wish < longest else None
    fitting = int(_free_bytes(clip, world) * FREE_SHARE / sample_bytes(clip, world.device, autocast))
    if world.world_size > 1:
        smallest = torch.tensor([fitting], device=world.device)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        fitting = int(smallest)
    if fitting >= longest:
        return None
    return 1 << max(0, fitting.bit_length() - 1)  # the power of two below


def sample_bytes(clip: CLIP, device: torch.device, autocast: Callable[[], AbstractContextManager[object]]) -> float:
    """Bytes that the forward pass of one sample, with a caption of full length, keeps for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in clip.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    row, samples = clip.architecture, 4
    before = {name: value.clone() for name, value in clip.named_buffers()}
    images = torch.zeros(samples, 3, row.image_size_px, row.image_size_px, device=device)
    texts = torch.zeros(samples, row.context_length, dtype=torch.int64)
    texts[:, -1] = row.vocab_size - 1
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast():
        graph = clip(images, texts)  # what it keeps lives as long as this does
    for name, value in clip.named_buffers():
        value.copy_(before[name])
    del graph
    return max(1.0, sum(kept.values()) / samples)


def _free_bytes(clip: CLIP, world: World) -> float:
    """Memory that is left to this rank once gradients and two moments exist."""
    trained = sum(parameter.nbytes for parameter in clip.parameters() if parameter.requires_grad)
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        free += torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
        return max(0.0, free - 3 * trained)
    return max(0.0, _available_bytes() / _ranks_on_this_node(world) - 3 * trained)


def _available_bytes() -> int:
    """Of this machine; what Linux says, else half of all."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _ranks_on_this_node(world: World) -> int:
    if world.world_size == 1:
        return 1
    names: list[str] = [""] * world.world_size
    dist.all_gather_object(names, socket.gethostname())
    return names.count(socket.gethostname())

"""The largest micro-batch that fits: bytes that a sample's forward pass keeps for the backward pass, against free memory.

In: a model on its device. Out: samples, the same on all ranks. The bytes of two and of four samples are counted, and no
out-of-memory trial is needed; their difference gives the bytes per sample, without those of a batch of any size (autocast's
copies of weights).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from model.clip import CLIP
from training.distributed import World, gather_objects
from training.step.gradients import buffers_kept
from training.step.model_setup import checkpointing_undone

FREE_SHARE = 0.6
"""Share of the memory left after gradients and moments; the rest is for temporaries, batches and fragmentation."""


def resolve_micro_batch_size(
    requested: int | str | None,
    clip: CLIP,
    optimizer: Optimizer,
    world: World,
    global_batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> int | None:
    """Samples that a rank embeds at a time, with `auto` resolved; None: the whole slice. Every rank calls it."""
    longest = -(-global_batch_size // world.world_size)
    if requested is None:
        return None
    if isinstance(requested, int):
        return requested if requested < longest else None
    left = _free_bytes(clip, optimizer, world) - _batch_bytes(clip, longest, global_batch_size)
    fitting = int(max(0.0, left) * FREE_SHARE / sample_bytes(clip, world.device, autocast))
    if world.world_size > 1:
        smallest = torch.tensor([fitting], device=world.device)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        fitting = int(smallest)
    if fitting >= longest:
        return None
    return 1 << max(0, fitting.bit_length() - 1)  # the power of two below


def step_bytes(
    clip: CLIP,
    optimizer: Optimizer,
    world: World,
    micro_batch_size: int | None,
    global_batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[float, float]:
    """(bytes that a step needs at most besides weights, gradients and moments; bytes that are free for it) on this rank."""
    longest = -(-global_batch_size // world.world_size)
    kept = sample_bytes(clip, world.device, autocast) * (micro_batch_size or longest)
    return kept + _batch_bytes(clip, longest, global_batch_size), _free_bytes(clip, optimizer, world)


def sample_bytes(clip: CLIP, device: torch.device, autocast: Callable[[], AbstractContextManager[object]]) -> float:
    """Bytes that the forward pass of one sample, with a caption of full length, keeps for the backward pass.

    Checkpointed blocks keep their inputs, and the largest one keeps everything, since one at a time is recomputed.
    """
    (total_2, _), (total_4, _) = (_kept_bytes(clip, samples, device, autocast) for samples in (2, 4))
    kept = (total_4 - total_2) / 2
    with checkpointing_undone(clip) as blocks:
        if blocks:
            (_, two), (_, four) = (_kept_bytes(clip, samples, device, autocast, blocks) for samples in (2, 4))
            kept += max((after - before) / 2 for before, after in zip(two, four, strict=True))
    return max(1.0, kept)


def _kept_bytes(
    clip: CLIP,
    samples: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    blocks: Sequence[nn.Module] = (),
) -> tuple[int, list[int]]:
    """Bytes that the forward pass of some samples keeps: in all, and within each of the blocks."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in clip.parameters()}
    kept: dict[int, int] = {}
    within = dict.fromkeys(blocks, 0)

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    def count(sign: int) -> Callable[..., None]:
        def hook(block: nn.Module, *_: object) -> None:
            within[block] += sign * sum(kept.values())

        return hook

    hooks = [block.register_forward_pre_hook(count(-1)) for block in blocks]
    hooks += [block.register_forward_hook(count(1)) for block in blocks]
    row = clip.architecture
    images = torch.zeros(samples, 3, row.image_size_px, row.image_size_px, dtype=torch.uint8, device=device)
    texts = torch.zeros(samples, row.context_length, dtype=torch.int64)
    texts[:, -1] = row.vocab_size - 1
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), buffers_kept(clip), autocast():
        graph = clip(images, texts)  # keeps the saved tensors alive
    for one in hooks:
        one.remove()
    del graph
    return sum(kept.values()), list(within.values())


def _batch_bytes(clip: CLIP, longest: int, global_batch_size: int) -> int:
    """Bytes of the images of two batches, one of them in flight, and of all ranks' features with their gradients, twice."""
    row = clip.architecture
    return 2 * longest * 3 * row.image_size_px**2 + 8 * global_batch_size * row.embed_dim * 4


def _free_bytes(clip: CLIP, optimizer: Optimizer, world: World) -> float:
    """Bytes left to this rank once gradients and two moments exist; a resumed run has its moments already."""
    trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    to_come = sum(one.nbytes * ((one.grad is None) + 2 * (one not in optimizer.state)) for one in trained)
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        free += torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
        return max(0.0, free - to_come)
    return max(0.0, _available_bytes() / _ranks_on_this_node(world) - to_come)


def _available_bytes() -> int:
    """Free bytes of this machine or of this process's container, the smaller one; half of all memory where not on Linux."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return min(int(line.split()[1]) * 1024, _container_bytes(Path("/sys/fs/cgroup")))


def _container_bytes(root: Path) -> int:
    """Bytes that the control group's limit leaves (version 2, then 1); without a limit, more than any machine has."""
    for limit, usage in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        if (root / limit).exists() and (root / usage).exists():
            bound = (root / limit).read_text().strip()
            if bound != "max":
                return max(0, int(bound) - int((root / usage).read_text()))
    return 1 << 62


def _ranks_on_this_node(world: World) -> int:
    return gather_objects(socket.gethostname(), world).count(socket.gethostname())

"""The largest micro-batch that fits: bytes that a forward pass keeps for the backward pass, against free memory.

In: a model on its device, and the lengths of some captions. Out: samples, the same on all ranks. No out-of-memory trial is
needed: what a few small batches keep, of captions of different lengths, gives the bytes of an image, of a token, and of a place
in the rectangle that attention pads captions to. A compiled model is counted as it would run without compilation, which keeps
no less: the hooks that count cannot be traced, and small batches would cost graphs of their own.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from model.clip import CLIP
from training.distributed import World, gather_objects
from training.step.gradients import buffers_kept
from training.step.model_setup import checkpointing_undone

FREE_SHARE = 0.85
"""Share of the memory left after gradients, moments and batches; the rest is for temporaries and fragmentation."""
DEVIATIONS = 4.0
"""Standard deviations by which the tokens of a micro-batch may exceed the mean."""
STEP = 8
"""Micro-batches are multiples of so many samples, for which the kernels of matrix products are made."""
_SHORT, _LONGER, _LONG = 8, 16, 32
"""Lengths of the captions that the probes have."""

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class CaptionLengths:
    """Tokens of the captions to expect.

    Attributes:
        longest: of a batch; attention pads to it.
    """

    mean: float
    deviation: float
    longest: int

    @staticmethod
    def of(lengths: Sequence[int], context_length: int) -> CaptionLengths:
        """Lengths from a sample of captions; without any, all are as long as they can be."""
        if not lengths:
            return CaptionLengths(context_length, 0.0, context_length)
        deviation, mean = torch.std_mean(torch.tensor(lengths, dtype=torch.float64), correction=0)
        return CaptionLengths(float(mean), float(deviation), context_length)

    def tokens(self, samples: int) -> float:
        """Tokens of a micro-batch, with a margin for those that have longer captions than others."""
        return samples * min(self.longest, self.mean + DEVIATIONS * self.deviation / math.sqrt(samples))


@dataclass(frozen=True)
class KeptBytes:
    """Bytes that a forward pass keeps for the backward pass.

    Attributes:
        fixed: of a batch of any size, such as autocast's copies of weights.
        pair: of an image, and of what a caption of any length has.
        token: of each token of a caption.
        place: of each place in the rectangle of captions.
        gradient: of the token embedding, which is there twice while it is added, when the captions' other bytes are free again.
    """

    fixed: float
    pair: float
    token: float
    place: float
    gradient: float = 0.0

    def of(self, samples: int, lengths: CaptionLengths) -> float:
        """Bytes of a micro-batch, at most."""
        captions = self.token * lengths.tokens(samples) + self.place * samples * lengths.longest
        return self.fixed + self.pair * samples + max(captions, self.gradient)

    def fitting(self, free: float, lengths: CaptionLengths) -> int:
        """The most samples that need no more than `free` bytes; 0 if one needs more."""
        low, high = 0, 1 << 24
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of(middle, lengths) <= free else (low, middle - 1)
        return low


def resolve_micro_batch_size(
    requested: int | str | None,
    clip: CLIP,
    optimizer: Optimizer,
    world: World,
    global_batch_size: int,
    autocast: Autocast,
    lengths: CaptionLengths | None = None,
) -> int | None:
    """Samples that a rank embeds at a time, with `auto` resolved; None: the whole slice. Every rank calls it.

    Args:
        lengths: of the captions, for `auto`; None: all are as long as they can be.
    """
    longest = -(-global_batch_size // world.world_size)
    if requested is None:
        return None
    if isinstance(requested, int):
        return requested if requested < longest else None
    lengths = lengths or CaptionLengths.of((), clip.architecture.context_length)
    left = _free_bytes(clip, optimizer, world) - _batch_bytes(clip, longest, global_batch_size)
    fitting = count_kept_bytes(clip, world.device, autocast).fitting(max(0.0, left) * FREE_SHARE, lengths)
    if world.world_size > 1:
        smallest = torch.tensor([fitting], device=world.device)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        fitting = int(smallest)
    size = _even_size(longest, max(1, fitting))
    if world.is_main:
        print(f"train.micro_batch_size=auto: {size:,} at a time of the {longest:,} samples of a rank")
    return None if size == longest else size


def _even_size(longest: int, fitting: int) -> int:
    """The size of as few micro-batches as fit, all about equal."""
    if fitting >= longest:
        return longest
    even = -(-longest // -(-longest // fitting))
    rounded = -(-even // STEP) * STEP
    return rounded if rounded <= fitting else even


def step_bytes(
    clip: CLIP,
    optimizer: Optimizer,
    world: World,
    micro_batch_size: int | None,
    global_batch_size: int,
    autocast: Autocast,
    lengths: CaptionLengths,
) -> tuple[float, float]:
    """(bytes that a step needs at most besides weights, gradients and moments; bytes that are free for it) on this rank."""
    longest = -(-global_batch_size // world.world_size)
    kept = count_kept_bytes(clip, world.device, autocast).of(micro_batch_size or longest, lengths)
    return kept + _batch_bytes(clip, longest, global_batch_size), _free_bytes(clip, optimizer, world)


def count_kept_bytes(clip: CLIP, device: torch.device, autocast: Autocast) -> KeptBytes:
    """Counts what a forward pass keeps.

    Checkpointed blocks keep their inputs, and the largest one keeps everything, since one at a time is recomputed.
    """
    few, short, longer, uneven = (
        _probe(clip, lengths, device, autocast)
        for lengths in ([_SHORT] * 2, [_SHORT] * 4, [_LONGER] * 4, [*[_SHORT] * 3, _LONG])
    )
    both = (longer - short) / (4 * (_LONGER - _SHORT))  # bytes of a token and of its place
    place = (uneven - short - both * (_LONG - _SHORT)) / (3 * (_LONG - _SHORT))
    pair = (short - few) / 2 - both * _SHORT
    fixed = few - 2 * (pair + both * _SHORT)
    embedding = clip.token_embedding.weight
    gradient = embedding.nbytes if embedding.requires_grad else 0
    fixed, pair, token, place = (max(0.0, value) for value in (fixed, pair, both - place, place))
    return KeptBytes(fixed, pair, token, place, gradient)


def _probe(clip: CLIP, lengths: Sequence[int], device: torch.device, autocast: Autocast) -> float:
    """Bytes that captions of these lengths, with as many images, keep."""
    total, _ = _kept_bytes(clip, lengths, device, autocast)
    with checkpointing_undone(clip) as blocks:
        within = _kept_bytes(clip, lengths, device, autocast, blocks)[1] if blocks else []
    return total + max(within, default=0)


def _kept_bytes(
    clip: CLIP, lengths: Sequence[int], device: torch.device, autocast: Autocast, blocks: Sequence[nn.Module] = ()
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
    size = row.image_size_px
    images = torch.zeros(len(lengths), size, size, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)  # as the loader's
    texts = torch.zeros(len(lengths), row.context_length, dtype=torch.int64)
    texts[torch.arange(len(lengths)), torch.tensor(lengths).clamp(max=row.context_length) - 1] = row.vocab_size - 1
    with _eager(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), buffers_kept(clip), autocast():
        graph = clip(images, texts)  # keeps the saved tensors alive
    for one in hooks:
        one.remove()
    del graph
    return sum(kept.values()), list(within.values())


def _eager() -> AbstractContextManager[object]:
    """Context in which compiled modules run as they are written."""
    compiles = "torch._dynamo" in sys.modules  # it takes seconds to import
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()


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

"""Communication between the ranks of one run: ranks, slices of a batch, gathers and sums.

Everything is the identity at world size 1, where no process group is needed. A world of one that is `forced` makes its
collectives all the same, so that one device can test them.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import InputError
from training.clock import CommunicationTimer

COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""Timeout of collectives in training; long, because train.hang_timeout_s ends a hang and reports where."""
Bounds = list[tuple[int, int]]
"""[start, stop) of every rank's slice."""


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        device: of this rank's model.
        forced: make collectives and wrap the model in DDP at world size 1 too, which needs a process group.
    """

    rank: int
    world_size: int
    device: torch.device
    forced: bool = False

    @property
    def is_alone(self) -> bool:
        """True where exchanges between ranks are the identity and are omitted."""
        return self.world_size == 1 and not self.forced

    @cached_property
    def communication(self) -> CommunicationTimer:
        """Counts the time that this rank waits for others."""
        return CommunicationTimer(self.device)

    @cached_property
    def control(self) -> Any:
        """A process group between the ranks' CPUs, besides that of training. All ranks must first use it at the same point."""
        return dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @staticmethod
    def from_process_group(device: torch.device) -> World:
        """The world of a process group that Ray Train or torchrun has initialised, or a world of one."""
        if not dist.is_initialized():
            return World(rank=0, world_size=1, device=device)
        return World(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)


def pick_device(wish: str) -> torch.device:
    """The device that `train.device` names; `auto` is CUDA where there is any, else the CPU."""
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wish)


def init_world(
    rank: int, world_size: int, init_method: str, device: torch.device, timeout_s: float = 600.0, forced: bool = False
) -> World:
    """Initialises a process group in a bare process: NCCL on CUDA, gloo elsewhere.

    Args:
        init_method: address of the rendezvous, e.g. file:///shared/path or tcp://host:port.
        forced: as `World.forced`.
    """
    if device.type == "cuda":  # else streams and events without a device are those of the first GPU
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    return World(rank, world_size, device, forced)


def slice_bounds(global_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """[start, stop) of a rank's contiguous slice. Slices cover everything and their sizes differ by at most one."""
    return global_size * rank // world_size, global_size * (rank + 1) // world_size


def gather_features(features_BE: Tensor, global_batch_size: int, world: World) -> Tensor:
    """Every rank's rows, in rank order: (G, E) from (B, E), with gradient.

    The backward pass sums over ranks the gradients that each of them has for all rows, and gives each its own slice
    (reduce-scatter, SUM), which makes the gradient of a loss over gathered features exact.
    """
    if world.is_alone:
        return features_BE
    gathered: Tensor = _Gather.apply(features_BE, global_batch_size, world)
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather of slices that may differ by one row, padded to the longest."""

    @staticmethod
    def forward(ctx: Any, features_BE: Tensor, global_batch_size: int, world: World) -> Tensor:
        ctx.world, ctx.bounds = world, all_bounds(global_batch_size, world)
        longest = max(stop - start for start, stop in ctx.bounds)
        padded = _pad(features_BE, longest)
        parts = padded.new_empty(world.world_size * longest, *padded.shape[1:])
        with world.communication.waiting():
            dist.all_gather_into_tensor(parts, padded)
        if all(stop - start == longest for start, stop in ctx.bounds):
            return parts
        rows = parts.split(longest)
        return torch.cat([part[: stop - start] for part, (start, stop) in zip(rows, ctx.bounds, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_GE,) = gradients
        # gloo's reduce-scatter is an all-reduce: twice the bytes
        scatter = reduce_scatter if gradient_GE.device.type == "cuda" else exchange_and_sum
        return scatter(gradient_GE, ctx.bounds, ctx.world), None, None


def reduce_scatter(rows_GE: Tensor, bounds: Bounds, world: World) -> Tensor:
    """This rank's slice of the sum of all ranks' `rows_GE`, by NCCL's own collective, padded."""
    start, stop = bounds[world.rank]
    longest = max(last - first for first, last in bounds)
    padded = rows_GE
    if len(rows_GE) != longest * world.world_size:
        padded = torch.cat([_pad(rows_GE[first:last], longest) for first, last in bounds])
    own = padded.new_empty(longest, *padded.shape[1:])
    with world.communication.waiting():
        dist.reduce_scatter_tensor(own, padded.contiguous())
    return own[: stop - start]


def exchange_and_sum(rows_GE: Tensor, bounds: Bounds, world: World) -> Tensor:
    """Like `reduce_scatter`, but all ranks' parts for this rank are fetched and summed here."""
    start, stop = bounds[world.rank]
    own = rows_GE.new_empty(world.world_size * (stop - start), *rows_GE.shape[1:])
    sizes = [last - first for first, last in bounds]
    with world.communication.waiting():
        dist.all_to_all_single(own, rows_GE.contiguous(), [stop - start] * world.world_size, sizes)
    return own.unflatten(0, (world.world_size, stop - start)).sum(0)


def all_ranks(values_N: Tensor, world: World) -> Tensor:
    """Every rank's values, (W, N) in rank order, on every rank. No gradient."""
    if world.is_alone:
        return values_N[None]
    own = values_N.detach().to(world.device)
    rows = own.new_empty(world.world_size * len(own))
    dist.all_gather_into_tensor(rows, own)
    return rows.view(world.world_size, len(own))


def gather_objects(thing: Any, world: World) -> list[Any]:
    """Every rank's small object, in rank order, on every rank."""
    if world.is_alone:
        return [thing]
    things: list[Any] = [None] * world.world_size
    with world.communication.waiting():
        dist.all_gather_object(things, thing, group=world.control)
    return things


@contextlib.contextmanager
def failing_together(world: World) -> Iterator[None]:
    """Raises an error of any rank on every rank, at the end of a block in which ranks work alone.

    Without it a rank that fails leaves the others waiting in their next exchange. The first rank's error wins, and
    `failed_together` knows it.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        if world.is_alone or failed_together(error, world):
            raise
        own = error
    if world.is_alone:
        return
    first = next((error for error in gather_objects(_portable(own), world) if error is not None), None)
    if first is not None:
        raise _marked(first) from own


def failed_together(error: BaseException, world: World) -> bool:
    """Returns whether every rank has this error, so that all of them can continue."""
    return world.is_alone or hasattr(error, _OF_ALL_RANKS)


_OF_ALL_RANKS = "of_all_ranks"


def _marked(error: Exception) -> Exception:
    setattr(error, _OF_ALL_RANKS, True)
    return error


def _portable(error: Exception | None) -> Exception | None:
    """The error, or one of the same text where it cannot travel between processes."""
    try:
        return type(error)(str(error)) if isinstance(error, InputError) else pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def parallel(model: nn.Module, world: World) -> nn.Module:
    """Wraps the model in DDP, which averages gradients over ranks during the backward pass; no change where the rank is alone.

    Buffers stay each rank's own: batch norm does not read them in training, and `broadcast_buffers` makes them the same.
    """
    if world.is_alone:
        return model
    with warnings.catch_warnings():  # its successor is missing in some supported versions of PyTorch
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    # A lambda, because DDP would refuse the hook's own annotations, which are strings in this file.
    wrapped.register_comm_hook(world, lambda state, bucket: _average_bucket(state, bucket))
    return wrapped


def _average_bucket(world: World, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own hook, with a note of the time."""
    world.communication.bucket_sent()
    return allreduce_hook(cast(dist.ProcessGroup, dist.group.WORLD), bucket)


def gather_rows(rows: Tensor, global_size: int, world: World) -> Tensor:
    """Like `gather_features`, for any tensor whose first dimension is sliced by `slice_bounds`. No gradient."""
    with torch.no_grad():
        return gather_features(rows.detach().contiguous(), global_size, world)


def gather_lengths(length: int, world: World) -> list[int]:
    """Number of rows of each rank, where they are not sliced by `slice_bounds`."""
    return [int(one) for one in all_ranks(torch.tensor([length]), world)[:, 0]]


def gather_uneven(rows: Tensor, world: World) -> Tensor:
    """Like `gather_rows`, for any number of rows on each rank."""
    if world.is_alone:
        return rows
    lengths = gather_lengths(len(rows), world)
    padded = _pad(rows.detach(), max(lengths))
    parts = padded.new_empty(world.world_size * len(padded), *padded.shape[1:])
    dist.all_gather_into_tensor(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts.split(max(1, len(padded))), lengths, strict=False)])


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Sum over all ranks, on every rank. No gradient."""
    if world.is_alone:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def barrier(world: World) -> None:
    """Waits until every rank has called this."""
    if not world.is_alone:
        dist.barrier()


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Copies rank 0's buffers to every rank: batch-norm statistics, which each rank collects on its own slice."""
    if world.is_alone:
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def all_bounds(global_size: int, world: World) -> Bounds:
    return [slice_bounds(global_size, rank, world.world_size) for rank in range(world.world_size)]


def _pad(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])

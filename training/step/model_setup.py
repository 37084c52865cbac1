"""Preparation of a finished model for training, from outside: locked encoders, memory layout, checkpointing, compilation.

The model's own files are not involved, and the state dict keeps its names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.clip import CLIP
from model.config import Tower
from model.layers import ResidualAttentionBlock
from model.resnet import Bottleneck, ModifiedResNet
from pipeline.errors import ConfigError
from training.config import TrainConfig, TrainingConfig
from training.distributed import World
from training.step.gradients import buffers_kept


def prepare_model(clip: CLIP, config: TrainingConfig) -> None:
    """Applies `model.lock` and `train.*` to the model. Call it before the optimizer and DDP are made."""
    for tower in config.model.lock:
        clip.lock(tower)
    if isinstance(clip.visual, ModifiedResNet):
        # Images arrive with their channels last, and convolutions are faster with it.
        clip.visual.to(memory_format=torch.channels_last)
    if config.train.sync_batch_norm:
        if clip.logit_scale.device.type != "cuda":
            raise ConfigError("train.sync_batch_norm=True: PyTorch synchronises batch norm on GPUs only; set it to false")
        nn.SyncBatchNorm.convert_sync_batchnorm(clip)
    for tower in config.train.activation_checkpointing:
        checkpoint_activations(clip, tower)


def compile_towers(clip: CLIP, config: TrainConfig, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles both encoders, in place, if `train.compile` says so: one graph each, for two samples or more, and any captions.

    Where gradients are cached, each has a second graph, for the pass without gradients; so has evaluation.
    """
    if config.compile is not True:
        return
    import torch._dynamo  # takes seconds

    compiled = torch.compile(clip.visual.forward, backend=backend)

    def forward(images_BCHW: Tensor, *rest: Tensor) -> Tensor:
        for one in (images_BCHW, *rest):
            torch._dynamo.maybe_mark_dynamic(one, 0)  # the last micro-batch is smaller
        features_BE: Tensor = compiled(images_BCHW, *rest)
        return features_BE

    clip.visual.forward = forward
    clip.transformer.compile(backend=backend, dynamic=True)  # tokens differ from batch to batch


def checkpoint_activations(clip: CLIP, tower: Tower) -> None:
    """Keeps only each block's input, and recomputes the rest in the backward pass (arXiv 1604.06174)."""
    for block in (clip.visual if tower == "image" else clip.transformer).modules():
        if isinstance(block, ResidualAttentionBlock | Bottleneck):
            again = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            if isinstance(block, Bottleneck):
                again = functools.partial(again, context_fn=functools.partial(_contexts, block))
            block.forward = again  # type: ignore[method-assign]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first and the second forward pass: batch norm counts only the first."""
    return contextlib.nullcontext(), buffers_kept(block)


@contextlib.contextmanager
def checkpointing_undone(clip: CLIP) -> Iterator[list[nn.Module]]:
    """Undoes checkpointing inside the context. Yields the blocks that are checkpointed outside it."""
    blocks = [block for block in clip.modules() if isinstance(block, ResidualAttentionBlock | Bottleneck)]
    taken = {block: block.__dict__.pop("forward") for block in blocks if "forward" in block.__dict__}
    try:
        yield list(taken)
    finally:
        for block, forward in taken.items():
            block.forward = forward  # type: ignore[method-assign]


def autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context of the precision that both encoders compute in; weights, loss and normalisation are always float32."""
    precision = precision_of(config, device)
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if precision == "float16" else torch.bfloat16)


def chosen(config: TrainConfig, world: World, micro_batch_size: int | None) -> dict[str, Any]:
    """The values of keys that may be `auto`, for the record of a start."""
    longest = -(-config.global_batch_size // world.world_size)
    return {
        "train.precision": precision_of(config, world.device),
        "train.compile": config.compile is True,
        "train.micro_batch_size": micro_batch_size or longest,
    }


def precision_of(config: TrainConfig, device: torch.device) -> str:
    """`train.precision`, with `auto` resolved for a device."""
    if config.precision != "auto":
        return config.precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"

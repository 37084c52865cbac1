"""A finished model made ready for training, from outside: locked encoders, memory layout, checkpointing, compilation.

The model's files know nothing of it, and the state dict keeps its names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.clip import CLIP
from model.config import Tower
from model.layers import ResidualAttentionBlock
from model.resnet import Bottleneck, ModifiedResNet
from pipeline.errors import ConfigError
from training.config import TrainConfig, TrainingConfig
from training.step.gradients import buffers_kept


def prepare_model(clip: CLIP, config: TrainingConfig) -> None:
    """Does to the model what `model.lock` and `train.*` ask for. Before the optimizer and DDP see it."""
    for tower in config.model.lock:
        clip.lock(tower)
    if isinstance(clip.visual, ModifiedResNet):
        # Pictures come with their channels last, and convolutions are faster so.
        clip.visual.to(memory_format=torch.channels_last)
    if config.train.sync_batch_norm:
        if clip.logit_scale.device.type != "cuda":
            raise ConfigError("train.sync_batch_norm=True: PyTorch synchronises batch norm on GPUs alone; leave it out")
        nn.SyncBatchNorm.convert_sync_batchnorm(clip)
    for tower in config.train.activation_checkpointing:
        checkpoint_activations(clip, tower)
    if config.train.compile:
        clip.visual.compile()
        clip.transformer.compile(dynamic=True)  # captions have another number of tokens each time


def checkpoint_activations(clip: CLIP, tower: Tower) -> None:
    """Keeps of each block its input alone, and computes the rest again in the backward pass (arXiv 1604.06174)."""
    for block in (clip.visual if tower == "image" else clip.transformer).modules():
        if isinstance(block, ResidualAttentionBlock | Bottleneck):
            again = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            if isinstance(block, Bottleneck):
                again = functools.partial(again, context_fn=functools.partial(_contexts, block))
            block.forward = again  # type: ignore[method-assign]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first and the second forward pass: batch norm counts one of them."""
    return contextlib.nullcontext(), buffers_kept(block)


@contextlib.contextmanager
def checkpointing_undone(clip: CLIP) -> Iterator[list[nn.Module]]:
    """The blocks that are checkpointed, which are not within this context."""
    taken = {block: block.__dict__.pop("forward") for block in clip.modules() if "forward" in block.__dict__}
    try:
        yield list(taken)
    finally:
        for block, forward in taken.items():
            block.forward = forward


def autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The precision that both encoders compute in; weights, loss and normalisation are float32 always."""
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)

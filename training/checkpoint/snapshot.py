"""A run's state at one step, copied into memory, so that training continues while it is written.

In: model, optimizer, moving average and position. Out: tensors on the CPU under their names in a checkpoint's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.clip import CLIP
from model.weights import weights_metadata

MODEL, AVERAGE, STATE = "model.safetensors", "average.safetensors", "state.safetensors"
LOSS_SCALE = "loss_scale/"
"""Prefix of the loss scale's tensors in the state."""


@dataclass(frozen=True)
class Position:
    """Progress of a run.

    Attributes:
        step: optimizer steps done.
        samples_seen: over all ranks and epochs; the loader resumes there at any world size.
        skipped_steps: steps that left the weights unchanged because of a non-finite loss or gradient.
    """

    step: int
    samples_seen: int
    skipped_steps: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint's files.

    Attributes:
        tensors: file -> name -> tensor on the CPU.
        metadata: file -> its safetensors metadata.
    """

    position: Position
    tensors: dict[str, dict[str, Tensor]]
    metadata: dict[str, dict[str, str]]


class Stager:
    """Stages snapshots in CPU memory that it reuses: a snapshot is valid until the next one is staged."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def stage(
        self,
        clip: CLIP,
        optimizer: torch.optim.Optimizer,
        position: Position,
        average: CLIP | None = None,
        loss_scale: Mapping[str, Tensor] | None = None,
    ) -> Snapshot:
        """Copies the state. Waits for the device."""
        state = optimizer_tensors(clip, optimizer) | dict(loss_scale or {})
        live: dict[str, dict[str, Tensor]] = {MODEL: clip.state_dict(), STATE: state}
        metadata = {MODEL: weights_metadata(clip.architecture), STATE: {"format": "pt"}}
        if average is not None:
            live[AVERAGE], metadata[AVERAGE] = average.state_dict(), metadata[MODEL]
        tensors = {
            file: {name: self._copy(file, name, value.detach()) for name, value in named.items()}
            for file, named in live.items()
        }
        if clip.logit_scale.device.type == "cuda":
            torch.cuda.synchronize(clip.logit_scale.device)
        tensors[STATE]["random/torch"] = torch.get_rng_state()
        return Snapshot(position, tensors, metadata)

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        """Copies into contiguous CPU memory, pinned if the value is on a GPU."""
        kept = self._kept.get((file, name))
        if kept is None:
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
            self._kept[file, name] = kept
        return kept.copy_(value, non_blocking=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`optimizer/{parameter}/{moment}` -> tensor."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in named_parameters(model, optimizer)
        for key, value in optimizer.state[parameter].items()
    }


def named_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters under their names in the model, which do not depend on the order of its groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter

"""Checkpoints of a run, in one folder of a storage: written whole or not at all, checked when read, never a pickle.

```
checkpoints/step_00000030/model.safetensors    weights, under the published keys
checkpoints/step_00000030/average.safetensors  their moving average, where the run keeps one
checkpoints/step_00000030/state.safetensors    optimizer moments and random state, as tensors
checkpoints/step_00000030/checkpoint.json      written last: without it the folder is no checkpoint
```

checkpoint.json holds the position (step, samples seen), what identifies the sample order and the data sets, the resolved
configuration, package versions, and size and sha256 of the other files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.clip import CLIP
from model.weights import save_weights
from pipeline.storage import Storage
from training.config import ConfigError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
MODEL, AVERAGE, STATE, RECORD = "model.safetensors", "average.safetensors", "state.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        samples_seen: over all ranks and epochs; the loader resumes there at any world size.
    """

    step: int
    samples_seen: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is visible; its tensors are read by `CheckpointStore.restore`.

    Attributes:
        order: what identifies the sample order (`SampleOrder.identity`).
        data_sets: uri, version and identity of each.
        config: the resolved configuration that wrote it.
    """

    folder: str
    position: Position
    order: dict[str, Any]
    data_sets: list[dict[str, Any]]
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]


class CheckpointStore:
    """The checkpoints of one run. Rank 0 writes; every rank reads."""

    def __init__(self, storage: Storage, keep_last: int, prefix: str = "checkpoints") -> None:
        self.storage = storage
        self.keep_last = keep_last
        self.prefix = prefix

    def save(
        self,
        clip: CLIP,
        optimizer: torch.optim.Optimizer,
        position: Position,
        order: dict[str, Any],
        data_sets: list[dict[str, Any]],
        config: dict[str, Any],
        average: CLIP | None = None,
    ) -> str:
        """Writes a checkpoint and removes those that `keep_last` no longer covers. Returns its folder."""
        folder = f"{self.prefix}/step_{position.step:08d}"
        state = _optimizer_tensors(clip, optimizer) | {"random/torch": torch.get_rng_state()}
        write: dict[str, Callable[[Path], None]] = {
            MODEL: lambda path: save_weights(clip, path),
            STATE: lambda path: save_file(state, path, metadata={"format": "pt"}),
        }
        if average is not None:
            write[AVERAGE] = lambda path: save_weights(average, path)
        files = {}
        with tempfile.TemporaryDirectory() as temporary:
            for name, write_to in write.items():
                path = Path(temporary) / name
                write_to(path)
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = {"size_bytes": path.stat().st_size, "sha256": digest}
                self.storage.write_file(f"{folder}/{name}", path)
        record = {
            "format_version": FORMAT_VERSION,
            "position": asdict(position),
            "order": order,
            "data_sets": data_sets,
            "config": config,
            "files": files,
            "packages": {package: version(package) for package in ("rayclip", "torch", "ray", "numpy")},
        }
        self.storage.write(f"{folder}/{RECORD}", json.dumps(record, indent=1).encode())
        self._remove_old()
        return folder

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None for a run that has none.

        One whose files are damaged is passed over, and said so.

        Raises:
            ConfigError: the run has checkpoints, and every one of them is damaged.
        """
        folders = self._folders()
        for folder in folders:
            try:
                return self._open(folder)
            except (ValueError, KeyError, FileNotFoundError) as error:
                logger.warning("checkpoint %s is damaged (%s); trying the one before it", folder, error)
        if folders:
            raise ConfigError(
                f"{self.storage.uri}/{self.prefix}: none of the {len(folders)} checkpoints is whole; "
                "restore one of them, or choose another run.name to start anew"
            )
        return None

    def restore(
        self, checkpoint: Checkpoint, clip: CLIP, optimizer: torch.optim.Optimizer, average: CLIP | None = None
    ) -> None:
        """Puts everything back as it was: weights, moments, random state and, where the run keeps one, the moving average."""
        clip.load_state_dict(self._tensors(checkpoint, MODEL), strict=True)
        state = self._tensors(checkpoint, STATE)
        torch.set_rng_state(state.pop("random/torch"))
        _load_optimizer_tensors(clip, optimizer, state)
        if average is not None:
            average.load_state_dict(self._tensors(checkpoint, AVERAGE), strict=True)

    def restore_weights(self, checkpoint: Checkpoint, clip: CLIP) -> None:
        """Puts in the weights that a run has to offer: their moving average where it keeps one."""
        clip.load_state_dict(self._tensors(checkpoint, AVERAGE if AVERAGE in checkpoint.files else MODEL), strict=True)

    def _tensors(self, checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.write_bytes(self.storage.read(f"{checkpoint.folder}/{name}"))
            return load_file(path)

    def _open(self, folder: str) -> Checkpoint:
        """Reads a record and checks size and sha256 of the files that it names. Raises ValueError where they differ."""
        record = json.loads(self.storage.read(f"{folder}/{RECORD}"))
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version={record['format_version']}: this program reads {FORMAT_VERSION}")
        for name, expected in record["files"].items():
            data = self.storage.read(f"{folder}/{name}")
            if len(data) != expected["size_bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise ValueError(f"{name} has not the size and sha256 that {RECORD} states")
        return Checkpoint(
            folder=folder,
            position=Position(**record["position"]),
            order=record["order"],
            data_sets=record["data_sets"],
            config=record["config"],
            files=record["files"],
        )

    def _folders(self) -> list[str]:
        """Folders that hold a record, newest first."""
        records = (item.path for item in self.storage.list(f"{self.prefix}/") if item.path.endswith(f"/{RECORD}"))
        return sorted((path.removesuffix(f"/{RECORD}") for path in records), reverse=True)

    def _remove_old(self) -> None:
        """Removes what `keep_last` does not cover: the record first, so that half a checkpoint is never visible."""
        for folder in self._folders()[self.keep_last :]:
            for name in (RECORD, STATE, AVERAGE, MODEL):
                self.storage.delete(f"{folder}/{name}")


def _named_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters under their names in the model, which do not depend on the order of its groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`optimizer/{parameter}/{moment}` -> tensor on the CPU."""
    return {
        f"optimizer/{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in _named_states(model, optimizer)
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of `_optimizer_tensors`, through load_state_dict, which puts each tensor where its parameter is."""
    content = optimizer.state_dict()
    for index, (name, parameter) in enumerate(_named_states(model, optimizer)):
        prefix = f"optimizer/{name}/"
        moments = {
            key.removeprefix(prefix): _laid_out_as(parameter, value) for key, value in state.items() if key.startswith(prefix)
        }
        if moments:
            content["state"][index] = moments
    optimizer.load_state_dict(content)


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Moments in the memory order of their parameter (channels_last): the fused optimizer walks both as one row of numbers."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)

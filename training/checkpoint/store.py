"""Checkpoints of a run, in one folder of a storage: visible when complete, checked when read, never a pickle.

```
checkpoints/step_00000030/model.safetensors    weights, under the published keys
checkpoints/step_00000030/average.safetensors  their moving average, if the run keeps one
checkpoints/step_00000030/state.safetensors    optimizer moments, random state and, of float16 runs, the loss scale
checkpoints/step_00000030/checkpoint.json      written last: without it the folder is no checkpoint
```

checkpoint.json holds the position (step, samples seen), the identities of sample order and data sets, the resolved
configuration, metrics, package versions, size and sha256 of the other files, and a sha256 of itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from model.clip import CLIP
from model.weights import save_readable
from pipeline.errors import ConfigError, StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.checkpoint.snapshot import AVERAGE, LOSS_SCALE, MODEL, STATE, Position, Snapshot, named_parameters
from training.config import CheckpointConfig

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
RECORD = "checkpoint.json"


class DamagedError(ValueError):
    """A checkpoint differs from what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is visible; its tensors are read by `restore`.

    Attributes:
        storage: of the run that wrote it; `folder` is relative to it.
        order: identity of the sample order (`SampleOrder.identity`).
        data_sets: uri, version and identity of each.
        config: resolved configuration of the run that wrote it.
        metrics: name -> value, of exactly its step.
        started_from: address of the checkpoint that its run started from; empty for a run that started from none.
        packages: name -> version, of the program that wrote it.
    """

    storage: Storage
    folder: str
    position: Position
    order: dict[str, Any]
    data_sets: list[dict[str, Any]]
    config: dict[str, Any]
    metrics: dict[str, float]
    started_from: str
    files: dict[str, dict[str, Any]]
    packages: dict[str, str]

    @property
    def address(self) -> str:
        return self.storage.address(self.folder)

    def restore(
        self,
        clip: CLIP,
        optimizer: torch.optim.Optimizer,
        average: CLIP | None = None,
        loss_scale: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Restores weights, moments, random state and, if the run has them, the moving average and the loss scale, in place.

        Raises:
            ConfigError: a file has changed since the checkpoint was chosen.
        """
        clip.load_state_dict(self._tensors(MODEL), strict=True)
        state = self._tensors(STATE)
        torch.set_rng_state(state.pop("random/torch"))
        stored = {name: state.pop(name) for name in list(state) if name.startswith(LOSS_SCALE)}
        for name, value in (loss_scale or {}).items():
            if name in stored:  # else the run had another precision before
                value.copy_(stored[name])
        _load_optimizer_tensors(clip, optimizer, state)
        if average is not None:
            average.load_state_dict(self._tensors(AVERAGE), strict=True)

    @property
    def has_average(self) -> bool:
        """True if its run keeps a moving average of the weights, which `restore_weights` then loads."""
        return AVERAGE in self.files

    def restore_weights(self, clip: CLIP) -> None:
        """Loads a run's weights for use: their moving average if it keeps one."""
        clip.load_state_dict(self._tensors(AVERAGE if self.has_average else MODEL), strict=True)

    def check(self, name: str, data: bytes) -> None:
        """Raises DamagedError if a file's bytes differ from those that were written."""
        expected = self.files[name]
        if len(data) != expected["size_bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise DamagedError(f"{name} does not match the size and sha256 in {RECORD}")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        data = self.storage.read(f"{self.folder}/{name}")
        try:
            self.check(name, data)
        except DamagedError as error:
            raise ConfigError(f"{self.address}: is damaged ({error}); remove this folder to use the one before it") from error
        return load(data)


class CheckpointStore:
    """The checkpoints of one run. Rank 0 writes; every rank reads."""

    def __init__(self, storage: Storage, config: CheckpointConfig | None = None, prefix: str = "checkpoints") -> None:
        """`config`: rules for keeping checkpoints; not needed for reading."""
        self.storage = storage
        self.config = config or CheckpointConfig()
        self.prefix = prefix
        self._scores: dict[str, float | None] = {}

    def write(self, snapshot: Snapshot, record: dict[str, Any], before_commit: Callable[[], None] | None = None) -> str:
        """Writes a checkpoint and removes those that need not be kept. Returns its folder.

        Args:
            record: order, data_sets, config, metrics and started_from of the `Checkpoint`.
            before_commit: called when everything but the record is written; if it raises, there is no checkpoint.
        """
        folder = self.folder(snapshot.position.step)
        files = {}
        for name, tensors in snapshot.tensors.items():
            with self.storage.new_file(f"{folder}/{name}") as path:
                save_readable(tensors, path, snapshot.metadata[name])
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = {"size_bytes": path.stat().st_size, "sha256": digest}
        if before_commit is not None:
            before_commit()
        content = {
            "format_version": FORMAT_VERSION,
            "position": asdict(snapshot.position),
            **record,
            "files": files,
            "packages": _versions("rayclip", "torch", "ray", "numpy"),
        }
        self._commit(folder, content)
        return folder

    def add_metrics(self, folder: str, metrics: dict[str, float], before_commit: Callable[[], None]) -> None:
        """Adds metrics of its step to a checkpoint that is visible, by which the best checkpoints are then kept."""
        before_commit()
        record = self._record(folder)
        if record["metrics"] | metrics != record["metrics"]:
            self._commit(folder, record | {"metrics": record["metrics"] | metrics})

    def _commit(self, folder: str, record: dict[str, Any]) -> None:
        self.storage.write(f"{folder}/{RECORD}", json.dumps(record | {"sha256": _digest(record)}, indent=1).encode())
        self._scores.pop(folder, None)
        try:
            self._remove_old(folder)
        except StorageError as error:  # the checkpoint itself is complete
            logger.warning("old checkpoints were not removed: %s", error)

    def folder(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return f"{self.prefix}/step_{step:08d}"

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None for a run that has none.

        Damaged ones are skipped with a warning.

        Raises:
            ConfigError: the run has checkpoints, and every one of them is damaged.
        """
        folders = self._folders()
        for folder in folders:
            try:
                return self.open(folder)
            except (DamagedError, FileNotFoundError) as error:
                logger.warning("checkpoint %s is damaged (%s); trying the one before it", folder, error)
        if folders:
            raise ConfigError(
                f"{self.storage.uri}/{self.prefix}: none of the {len(folders)} checkpoints is whole; "
                "restore one of them, or choose another run.name to start from the beginning"
            )
        return None

    def open(self, folder: str) -> Checkpoint:
        """Reads a record and checks size and sha256 of its files. Raises DamagedError, FileNotFoundError."""
        record = self._record(folder)
        checkpoint = Checkpoint(
            storage=self.storage,
            folder=folder,
            position=Position(**record["position"]),
            order=record["order"],
            data_sets=record["data_sets"],
            config=record["config"],
            metrics=record["metrics"],
            started_from=record["started_from"],
            files=record["files"],
            packages=record["packages"],
        )
        for name in checkpoint.files:
            checkpoint.check(name, self.storage.read(f"{folder}/{name}"))
        return checkpoint

    def remove_unfinished(self, after_step: int) -> None:
        """Removes folders that cannot be resumed from. Called by the run's only writer.

        They are those without a record, left by a killed writer, and those after the step that the run resumes from, which are
        damaged or were written by another process meanwhile.
        """
        last = self.folder(after_step)
        whole = {folder for folder in self._folders() if folder <= last}
        for folder in set(self._folders()) - whole:
            self.storage.delete(f"{folder}/{RECORD}")  # first, so that no partial checkpoint is ever visible
        self.storage.remove_unfinished(before=datetime.now(UTC))
        for item in list(self.storage.list(f"{self.prefix}/")):
            if item.path.rpartition("/")[0] not in whole:
                self.storage.delete(item.path)

    def _record(self, folder: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self.storage.read(f"{folder}/{RECORD}"))
            found, digest = record["format_version"], record.pop("sha256", "")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedError(f"{RECORD} is not whole") from None
        if found != FORMAT_VERSION:
            raise DamagedError(f"format_version={found}: this program reads {FORMAT_VERSION}")
        if digest != _digest(record):
            raise DamagedError(f"{RECORD} does not match its own sha256")
        return record

    def _folders(self) -> list[str]:
        """Folders that hold a record, newest first."""
        records = (item.path for item in self.storage.list(f"{self.prefix}/") if item.path.endswith(f"/{RECORD}"))
        return sorted((path.removesuffix(f"/{RECORD}") for path in records), reverse=True)

    def _remove_old(self, written: str) -> None:
        """Removes all but the last and the best: the record first, so that no partial checkpoint is ever visible."""
        folders = self._folders()
        keep = [written, *folders[: self.config.keep_last], *self._best(folders)]
        for folder in folders:
            if folder not in keep:
                for name in (RECORD, STATE, AVERAGE, MODEL):
                    self.storage.delete(f"{folder}/{name}")

    def _best(self, folders: list[str]) -> list[str]:
        if not self.config.keep_best:
            return []
        sign = 1 if self.config.best_is == "highest" else -1
        scores = {folder: self._score(folder) for folder in folders}
        ranked = sorted((sign * score, folder) for folder, score in scores.items() if score is not None)
        return [folder for _, folder in ranked[-self.config.keep_best :]]

    def _score(self, folder: str) -> float | None:
        if folder not in self._scores:
            try:
                self._scores[folder] = self._record(folder)["metrics"].get(self.config.best_metric)
            except (DamagedError, FileNotFoundError):
                return None
        return self._scores[folder]


def open_checkpoint(address: str) -> Checkpoint:
    """The checkpoint at an address: its own folder, or a run's, for the run's last one.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    place = open_storage(address.rstrip("/"))
    if not place.exists(RECORD):
        found = CheckpointStore(place).latest()
        if found is None:
            raise ConfigError(f"run.resume={address}: holds no checkpoint; give the folder of one, or of a run that has one")
        return found
    parent, _, folder = place.uri.rpartition("/")
    try:
        return CheckpointStore(open_storage(parent)).open(folder)
    except (DamagedError, FileNotFoundError) as error:
        raise ConfigError(f"run.resume={address}: is damaged ({error}); give another one") from error


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of `snapshot.optimizer_tensors`, by load_state_dict, which moves each tensor to its parameter's device."""
    content = optimizer.state_dict()
    for index, (name, parameter) in enumerate(named_parameters(model, optimizer)):
        prefix = f"optimizer/{name}/"
        moments = {
            key.removeprefix(prefix): _laid_out_as(parameter, value) for key, value in state.items() if key.startswith(prefix)
        }
        if moments:
            content["state"][index] = moments
    optimizer.load_state_dict(content)


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Moments in the memory format of their parameter (channels_last), since the fused optimizer walks both as flat arrays."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _versions(*packages: str) -> dict[str, str]:
    """Versions of those that are installed: a bare process may train from a checkout, and without Ray."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found

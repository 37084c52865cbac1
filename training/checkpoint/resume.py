"""The checkpoint that a run resumes from, and the settings that may differ from it.

Settings that determine the sample order, the data or the model cannot change within a run. Others that the result depends on,
such as a learning rate, can if `run.allow_config_changes` is set. All else (workers, memory, logging, storage) changes freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.config import Architecture
from pipeline.errors import ConfigError
from training.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint
from training.config import RunConfig, TrainingConfig
from training.data.sample_order import SampleOrder

FREE_SECTIONS = ("run", "checkpoint", "tracking", "evaluation", "cluster")
FREE_KEYS = {
    # used only at the start, or compared as the architecture that they make
    "model": ("weights", "allow_torchscript", "activation", "image_size_px"),
    "data": (
        "uri", "version", "mixture", "block_size_samples", "num_streams", "run_size_samples", "shuffle_shards",  # `identity`
        "prefetch_bytes", "prefetch_batches", "read_threads", "decode_workers", "cache_dir", "cache_bytes", "on_damage",
        "max_skipped_samples", "stall_warning_s",
    ),
    "train": (
        "global_batch_size", "min_steps_per_epoch", "seed",  # in the order's identity
        "device", "micro_batch_size", "activation_checkpointing", "compile", "loss_tile_size", "log_every_steps",
        "on_non_finite", "max_skipped_steps", "hang_timeout_s",
    ),
}  # fmt: skip
"""Keys that a resume may change silently, or that are compared elsewhere."""


@dataclass(frozen=True)
class Start:
    """The start of a run: a checkpoint to resume from, or None for a new run."""

    checkpoint: Checkpoint | None


def find_start(run: RunConfig, checkpoints: CheckpointStore) -> Start:
    """Finds the checkpoint that `run.resume` asks for.

    Raises:
        ConfigError: with never, the run has checkpoints; with an address, it holds none, or the run has others already.
    """
    own = checkpoints.latest()
    if run.resume == "auto":
        return Start(own)
    if run.resume == "never":
        if own is None:
            return Start(None)
        raise ConfigError(
            f"run.resume=never: run.name={run.name} has checkpoints already, the last is {own.address}; "
            "choose another run.name, or set run.resume=auto to resume from it"
        )
    if own is None:
        return Start(open_checkpoint(run.resume))
    if own.started_from == run.resume:
        return Start(own)
    raise ConfigError(
        f"run.resume={run.resume}: run.name={run.name} has checkpoints already, the last is {own.address}, and did not start "
        "from there; choose another run.name, or set run.resume=auto to resume from it"
    )


def check_continues(
    checkpoint: Checkpoint,
    config: TrainingConfig,
    before: TrainingConfig,
    rows: tuple[Architecture, Architecture],
    order: SampleOrder,
    identities: Sequence[str],
) -> None:
    """Raises ConfigError where samples or model would differ from those of the checkpoint.

    Args:
        before: the checkpoint's configuration.
        rows: the model's architecture now, and the checkpoint's.
        identities: of the data sets now.
    """
    differences = [
        f"{key}={value!r} (the checkpoint has {checkpoint.order.get(key)!r})"
        for key, value in order.identity().items()
        if checkpoint.order.get(key) != value
    ]
    if list(identities) != [one["identity"] for one in checkpoint.data_sets]:
        named = ", ".join(f"{one['uri']} version {one['version']}" for one in checkpoint.data_sets)
        differences.append(f"data={', '.join(part.uri for part in config.data.parts)} (it has {named})")
    row, held_row = rows
    for key, ours, theirs in (
        ("model.name", row.name, held_row.name),
        ("model.activation", row.activation, held_row.activation),
        ("model.image_size_px", row.image_size_px, held_row.image_size_px),
        ("model.lock", list(config.model.lock), list(before.model.lock)),
        ("train.ema_decay", config.train.ema_decay, before.train.ema_decay),
        ("train.loss", config.train.loss, before.train.loss),
    ):
        if ours != theirs:
            differences.append(f"{key}={ours} (it has {theirs})")
    if differences:
        raise ConfigError(
            f"run.name={config.run.name}: its checkpoint {checkpoint.address} does not continue into this configuration: "
            f"{'; '.join(differences)}; restore these values, or choose another run.name"
        )


def changed_settings(config: TrainingConfig, before: TrainingConfig, address: str) -> tuple[str, ...]:
    """Settings that differ from the checkpoint's, one line each.

    Raises:
        ConfigError: there are some, and run.allow_config_changes is not set.
    """
    now, then = config.model_dump(mode="json"), before.model_dump(mode="json")
    changes = tuple(
        f"{section}.{key}: {_shown(then[section][key])} -> {_shown(value)}"
        for section, values in now.items()
        if section not in FREE_SECTIONS
        for key, value in values.items()
        if key not in FREE_KEYS.get(section, ()) and then[section][key] != value
    )
    if changes and not config.run.allow_config_changes:
        shown = "\n".join(f"    {line}" for line in changes)
        raise ConfigError(
            f"run.name={config.run.name}: its checkpoint {address} was trained with other settings:\n{shown}\n"
            "restore them, choose another run.name, or set run.allow_config_changes=true to continue with the new ones"
        )
    return changes


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)

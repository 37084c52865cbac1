"""What a run will do, decided from its configuration, its data set and its checkpoints, before any worker starts.

The launcher calls `plan_run` to refuse bad input in seconds and to pin the data set's version; every rank calls it again
with the pinned configuration and gets the same plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from model.config import Architecture, get_architecture
from pipeline.storage import Storage, open_storage
from training.checkpoint import Checkpoint, CheckpointStore, Position
from training.config import ConfigError, TrainingConfig
from training.data_sets import DataSet, block_size_samples, open_data_sets
from training.evaluation.runner import check_evaluation
from training.initial_weights import check_initial_weights, initial_activation
from training.optimizer import Schedule
from training.sample_order import SampleOrder


@dataclass(frozen=True)
class RunPlan:
    """Everything that is settled before the first step.

    Attributes:
        config: with the versions of its data sets pinned.
        run: the run's own folder: checkpoints, metrics.jsonl, config.yaml.
        start: where the run goes on; step 0 for a new one.
        schedule: of the learning rate; its total_steps are the run's.
    """

    config: TrainingConfig
    architecture: Architecture
    data_sets: tuple[DataSet, ...]
    order: SampleOrder
    run: Storage
    checkpoints: CheckpointStore
    checkpoint: Checkpoint | None
    start: Position
    schedule: Schedule

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps


def plan_run(config: TrainingConfig) -> RunPlan:
    """Opens what the run reads and writes, and checks that it fits together. Starts nothing and writes nothing.

    Raises:
        ValueError: (ConfigError, StorageError, ManifestError) bad input, with value, rule and remedy.
    """
    config = TrainingConfig.model_validate(config.model_dump(include=set(TrainingConfig.model_fields)))
    check_model(config)
    run = open_storage(f"{config.run.dir.rstrip('/')}/{config.run.name}")
    checkpoints = CheckpointStore(run, config.checkpoint.keep_last)
    checkpoint = checkpoints.latest()
    config = _with_activation(config, checkpoint)
    architecture = architecture_of(config)
    if config.model.weights and checkpoint is None:
        check_initial_weights(architecture, config.model)
    check_evaluation(config.evaluation)
    data_sets = open_data_sets(config.data, checkpoint.data_sets if checkpoint is not None else ())
    pinned = config.data.with_versions([one.manifest.version for one in data_sets])
    config = config.model_copy(update={"data": pinned})
    order = SampleOrder(
        sources=tuple(one.source for one in data_sets),
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        num_streams=config.data.num_streams,
        block_size_samples=block_size_samples(config.data, config.train.global_batch_size),
        run_size_samples=config.data.run_size_samples,
        shuffle_shards=config.data.shuffle_shards,
    )
    schedule = plan_schedule(config, order.steps_per_epoch)
    if config.cluster.num_workers > config.train.global_batch_size:
        raise ConfigError(
            f"cluster.num_workers={config.cluster.num_workers}: every worker needs at least one sample of a step; "
            f"use at most train.global_batch_size={config.train.global_batch_size} workers"
        )
    if checkpoint is not None:
        _check_continues(checkpoint, config, order, data_sets, schedule.total_steps)
    start = checkpoint.position if checkpoint is not None else Position(step=0, samples_seen=0)
    return RunPlan(config, architecture, data_sets, order, run, checkpoints, checkpoint, start, schedule)


def architecture_of(config: TrainingConfig) -> Architecture:
    """The model that a run trains."""
    row = get_architecture(config.model.name)
    return replace(
        row,
        has_logit_bias=config.train.loss == "sigmoid",
        image_size_px=config.model.image_size_px or row.image_size_px,
        activation=config.model.activation or row.activation,
    )


def check_model(config: TrainingConfig) -> None:
    """Refuses what the model cannot be or do. Raises ConfigError."""
    model, train, row = config.model, config.train, get_architecture(config.model.name)
    if model.image_size_px is not None and model.image_size_px % row.image_step_px:
        raise ConfigError(
            f"model.image_size_px={model.image_size_px}: {row.name} cuts pictures into squares of {row.image_step_px} pixels; "
            f"use a multiple of {row.image_step_px}"
        )
    if model.lock and not model.weights:
        raise ConfigError(f"model.lock={list(model.lock)}: an encoder that learns nothing needs weights; give model.weights")
    if len(set(model.lock)) > 1:
        raise ConfigError(f"model.lock={list(model.lock)}: nothing but the temperature would be trained; lock one encoder")
    if train.patch_dropout and row.patch_size_px is None:
        raise ConfigError(f"train.patch_dropout={train.patch_dropout}: {row.name} has no patches; it is for ViTs, leave it out")
    if train.sync_batch_norm and (train.device == "cpu" or row.patch_size_px is not None):
        raise ConfigError(
            f"train.sync_batch_norm=True: {row.name} on train.device={train.device} has no batch norm that can be "
            "synchronised; it is for ResNets on GPUs, leave it out"
        )
    if train.sync_batch_norm and train.micro_batch_size is not None:
        raise ConfigError(
            f"train.micro_batch_size={train.micro_batch_size}: with train.sync_batch_norm all samples are embedded together; "
            "leave one of the two out"
        )
    if train.compile and "image" in train.activation_checkpointing and row.patch_size_px is None:
        raise ConfigError(
            f"train.activation_checkpointing=image: with train.compile {row.name}'s batch norm would count twice; "
            "leave one of the two out"
        )


def plan_schedule(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """The learning rate's course in steps, whichever units its parts were given in. Raises ConfigError where it cannot be."""
    train, optimizer = config.train, config.optimizer
    total = train.num_epochs * steps_per_epoch
    if train.max_steps is not None:
        total = min(total, train.max_steps)
    if train.max_samples is not None:
        total = min(total, train.max_samples // train.global_batch_size)
    if total == 0:
        raise ConfigError(
            f"train.max_samples={train.max_samples}: is less than one step; use at least "
            f"train.global_batch_size={train.global_batch_size}"
        )
    said, warmup = _in_steps(config, "warmup", steps_per_epoch, default=min(2000, total // 10))
    also_said, cooldown = _in_steps(config, "cooldown", steps_per_epoch, default=0)
    if (said or also_said) and warmup + cooldown >= total:
        parts = " and ".join(part for part in (said, also_said) if part)
        raise ConfigError(f"{parts}: the run has {total:,} steps, too few for that; lower it, or train longer")
    return Schedule(optimizer.learning_rate, optimizer.schedule, total, warmup, cooldown)


def _in_steps(config: TrainingConfig, part: str, steps_per_epoch: int, default: int) -> tuple[str, int]:
    """(the key as it was given, steps) of a part of the schedule; the default where no key of it was."""
    one = Fraction(1)
    steps_of_one = {"steps": one, "samples": one / config.train.global_batch_size, "epochs": one * steps_per_epoch}
    for unit, steps in steps_of_one.items():
        value = getattr(config.optimizer, f"{part}_{unit}")
        if value is not None:
            return f"optimizer.{part}_{unit}={value}", math.ceil(Fraction(str(value)) * steps)
    return "", default


def _with_activation(config: TrainingConfig, checkpoint: Checkpoint | None) -> TrainingConfig:
    """Pins the activation: what the checkpoint was trained with, else what is told, else what the weights' file states."""
    model = config.model
    if model.activation is None and checkpoint is not None:
        told = TrainingConfig.model_validate(checkpoint.config).model.activation
    elif model.weights and checkpoint is None:
        told = initial_activation(model)
    else:
        told = model.activation
    return config.model_copy(update={"model": model.model_copy(update={"activation": told})})


def batch_norm_caveat(config: TrainingConfig, architecture: Architecture, world_size: int, micro_batch_size: int | None) -> str:
    """Why a run's losses will depend on how many ranks it has, or on memory; empty where they do not."""
    train = config.train
    if architecture.patch_size_px is not None:
        return ""
    parts = []
    if world_size > 1 and not train.sync_batch_norm:
        parts.append(f"{world_size} workers without train.sync_batch_norm")
    if micro_batch_size is not None:
        parts.append(f"train.micro_batch_size={micro_batch_size}")
    if not parts:
        return ""
    return (
        f"{config.model.name} with {' and '.join(parts)}: batch norm sees a part of the batch, and the losses depend on which"
    )


def _check_continues(
    checkpoint: Checkpoint, config: TrainingConfig, order: SampleOrder, data_sets: tuple[DataSet, ...], total_steps: int
) -> None:
    """Refuses to resume a run whose samples or model would differ from those that its checkpoint has seen."""
    differences = [
        f"{key}={value!r} (the checkpoint has {checkpoint.order.get(key)!r})"
        for key, value in order.identity().items()
        if checkpoint.order.get(key) != value
    ]
    held = [one["identity"] for one in checkpoint.data_sets]
    if [one.manifest.identity for one in data_sets] != held:
        named = ", ".join(f"{one['uri']} version {one['version']}" for one in checkpoint.data_sets)
        differences.append(f"data={', '.join(map(str, data_sets))} (it has {named})")
    before = TrainingConfig.model_validate(checkpoint.config)
    row, held_row = architecture_of(config), architecture_of(before)
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
            f"run.name={config.run.name}: this run has the checkpoint {checkpoint.folder}, which does not continue into "
            f"this configuration: {'; '.join(differences)}; restore these values, or choose another run.name"
        )
    if total_steps < checkpoint.position.step:
        raise ConfigError(
            f"train.max_steps, max_samples, num_epochs: make {total_steps:,} steps, and run.name={config.run.name} has done "
            f"{checkpoint.position.step:,} already; ask for more, or choose another run.name"
        )

"""The plan of a run, made from its configuration, its data sets and its checkpoints before any worker starts.

The launcher calls `plan_run` to refuse bad input in seconds and to pin the data sets' versions. Rank 0 decides from which
checkpoint the run resumes (training/checkpoint/resume.py), and all ranks make the same plan of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from model.config import Architecture, get_architecture
from pipeline.dataset.manifest import ManifestError
from pipeline.errors import ConfigError, StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.best_metric import check_best_metric
from training.checkpoint.initial_weights import check_initial_weights, initial_activation, initial_weights_sha256
from training.checkpoint.resume import Start, changed_settings, check_continues, find_start
from training.checkpoint.snapshot import MODEL, Position
from training.checkpoint.store import Checkpoint, CheckpointStore
from training.config import TrainConfig, TrainingConfig
from training.data.caption_columns import caption_lengths, check_captions
from training.data.data_sets import DataSet, block_size_samples, check_prefetch, mean_sample_bytes, open_data_sets
from training.data.order_layout import fit_batch_size, fit_num_streams
from training.data.sample_order import VERSION, VERSIONS, SampleOrder
from training.distributed import World, gather_objects
from training.evaluation.runner import check_evaluation
from training.optimizer import Schedule
from training.step.micro_batch import CaptionLengths
from training.wandb_environment import with_environment

RATE_TOLERANCE = 0.01
"""Relative difference of learning rates that is not worth a line."""


@dataclass(frozen=True)
class RunPlan:
    """Everything that is settled before the first step.

    Attributes:
        config: with the versions of its data sets pinned, the batch size fitted to them, and W&B's settings resolved.
        run: the run's own folder: checkpoints, metrics.jsonl, config.yaml.
        start: position that the run resumes from; step 0 for a new one.
        changes: settings that differ from the checkpoint's, one line each, as run.allow_config_changes allows.
        rate_change: what they do to the learning rate at the step that the run resumes from; empty if nothing.
        weights_sha256: of the tensors at model.weights; empty for a run that does not start from them.
        schedule: learning rate by step; its total_steps are the run's.
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
    changes: tuple[str, ...]
    rate_change: str
    weights_sha256: str

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    def caption_lengths(self) -> CaptionLengths:
        """Lengths of the captions to expect, from some of them."""
        opened, length = [(one.storage, one.manifest) for one in self.data_sets], self.architecture.context_length
        return CaptionLengths.of(caption_lengths(opened, self.config.data.captions, length), length)

    def newer_data(self) -> Iterator[str]:
        """One line for each data set that has grown since the run began."""
        for one in self.data_sets:
            if self.checkpoint is not None and one.newest is not None and one.newest > one.manifest.version:
                yield (
                    f"data: the run keeps version {one.manifest.version} of {one.storage.uri}; version {one.newest} is "
                    f"available; to train on it, start a new run.name with model.weights={self.checkpoint.address}/{MODEL}"
                )

    def about(self, metrics: dict[str, float]) -> dict[str, Any]:
        """The record of a checkpoint of this run, besides its state (`CheckpointStore.write`)."""
        started_from = ""
        if self.checkpoint is not None:
            own = self.checkpoint.storage.uri == self.run.uri
            started_from = self.checkpoint.started_from if own else self.config.run.resume
        return {
            "order": self.order.identity(),
            "data_sets": [one.identity() for one in self.data_sets],
            "config": self.config.model_dump(mode="json"),
            "metrics": metrics,
            "started_from": started_from,
        }


@dataclass(frozen=True)
class OpenedRun:
    """Everything that a run reads, opened but not yet checked to fit together.

    Attributes:
        config: with the activation and the versions of its data sets pinned.
        checkpoint: to resume from; None for a new run.
    """

    config: TrainingConfig
    architecture: Architecture
    data_sets: tuple[DataSet, ...]
    run: Storage
    checkpoints: CheckpointStore
    checkpoint: Checkpoint | None
    weights_sha256: str = ""


def plan_run(config: TrainingConfig, begin: Start | None = None) -> RunPlan:
    """Checks the configuration, opens what the run reads, and checks that it fits together. Starts and writes nothing.

    Args:
        begin: where the run starts, found by another rank; None: find it.

    Raises:
        ValueError: (ConfigError, StorageError, ManifestError) bad input, with value, rule and remedy.
    """
    config = TrainingConfig.model_validate(config.model_dump(include=set(TrainingConfig.model_fields)))
    check_config(config)
    config = config.model_copy(update={"tracking": with_environment(config.tracking, os.environ)})
    return fit_together(open_run(config, begin))


def check_config(config: TrainingConfig) -> None:
    """Checks everything that needs no data set and no checkpoint; opens nothing. Raises ConfigError."""
    check_model(config)
    check_best_metric(config)
    if config.train.device == "cuda" and config.cluster.use_gpu is False:
        raise ConfigError(
            "train.device=cuda: with cluster.use_gpu=False workers have no GPU; set cluster.use_gpu=true, or train.device=cpu"
        )
    _check_every_worker_has_samples(config)


def _check_every_worker_has_samples(config: TrainingConfig) -> None:
    if config.cluster.max_workers > config.train.global_batch_size:
        raise ConfigError(
            f"cluster.num_workers={config.cluster.num_workers}: every worker needs at least one sample of a step; "
            f"use at most train.global_batch_size={config.train.global_batch_size} workers"
        )


def open_run(config: TrainingConfig, begin: Start | None = None) -> OpenedRun:
    """Finds the checkpoint, and opens weights, evaluation data and data sets. Arguments and errors as for `plan_run`."""
    run = open_storage(config.run.uri, bool(config.run.single_writer))
    checkpoints = CheckpointStore(run, config.checkpoint)
    checkpoint = (begin or find_start(config.run, checkpoints)).checkpoint
    config = _with_activation(config, checkpoint)
    architecture, weights_sha256 = architecture_of(config), ""
    if config.model.weights and checkpoint is None:
        check_initial_weights(architecture, config.model)
        weights_sha256 = initial_weights_sha256(config.model)
    if begin is None:  # else rank 0 has done so for all
        check_evaluation(config.evaluation)
    data_sets = open_data_sets(config.data, checkpoint.data_sets if checkpoint is not None else ())
    if begin is None:
        check_captions([(one.storage, one.manifest) for one in data_sets], config.data.captions, "data.captions")
    pinned = config.data.with_versions([one.manifest.version for one in data_sets])
    config = config.model_copy(update={"data": pinned, "train": _fit_batch_size(config.train, data_sets)})
    _check_every_worker_has_samples(config)
    return OpenedRun(config, architecture, data_sets, run, checkpoints, checkpoint, weights_sha256)


def _fit_batch_size(train: TrainConfig, data_sets: Sequence[DataSet]) -> TrainConfig:
    """Lowers the batch size as `train.min_steps_per_epoch` asks; of the pinned versions, so that a resume does the same."""
    if train.min_steps_per_epoch == 1:
        return train
    epoch_samples = sum(one.source.epoch_samples for one in data_sets)
    size = fit_batch_size(epoch_samples, train.global_batch_size, train.min_steps_per_epoch)
    return train.model_copy(update={"global_batch_size": size})


def fit_together(opened: OpenedRun) -> RunPlan:
    """Settles sample order and schedule, and checks them against data sets, memory and checkpoint. Raises ConfigError."""
    config, data_sets, checkpoint = opened.config, opened.data_sets, opened.checkpoint
    order = plan_order(config, data_sets, checkpoint)
    schedule = plan_schedule(config, order.steps_per_epoch)
    largest_slice = math.ceil(config.train.global_batch_size / config.cluster.min_workers)
    check_prefetch(config.data, order, mean_sample_bytes(data_sets, order), largest_slice)
    changes: tuple[str, ...] = ()
    rate_change = ""
    if checkpoint is not None:
        before = TrainingConfig.model_validate(checkpoint.config)
        rows = (opened.architecture, architecture_of(before))
        check_continues(checkpoint, config, before, rows, order, [one.manifest.identity for one in data_sets])
        changes = changed_settings(config, before, checkpoint.address)
        _check_steps_are_left(config, schedule.total_steps, checkpoint.position.step)
        rate_change = describe_rate_change(plan_schedule(before, order.steps_per_epoch), schedule, checkpoint.position.step)
    return RunPlan(
        config=config,
        architecture=opened.architecture,
        data_sets=data_sets,
        order=order,
        run=opened.run,
        checkpoints=opened.checkpoints,
        checkpoint=checkpoint,
        start=checkpoint.position if checkpoint is not None else Position(step=0, samples_seen=0),
        schedule=schedule,
        changes=changes,
        rate_change=rate_change,
        weights_sha256=opened.weights_sha256,
    )


def _shows_one(num_samples: int) -> float:
    """A short weight with which an epoch shows one sample."""
    return math.ceil(10_000 / num_samples) / 10_000 if num_samples <= 10_000 else 2 / num_samples


def plan_order(config: TrainingConfig, data_sets: Sequence[DataSet], checkpoint: Checkpoint | None) -> SampleOrder:
    """The order of samples, with fewer streams than configured where these would skip samples of a small data set.

    A run that began in the configured number of streams keeps it, and a run keeps the version of its order.
    """
    sources, batch = tuple(one.source for one in data_sets), config.train.global_batch_size
    for number, source in enumerate(sources):
        if len(sources) > 1 and not source.epoch_samples:
            part = config.data.parts[number]
            remedy = f"use {_shows_one(source.num_samples):g} or more" if source.num_samples else "name one that has samples"
            raise ConfigError(
                f"data.mixture.{number}.weight={part.weight:g}: of the {source.num_samples:,} samples of {part.uri} an epoch "
                f"would show none; {remedy}, or omit it"
            )
    version = checkpoint.order["version"] if checkpoint is not None else VERSION
    streams = config.data.num_streams
    if checkpoint is None or checkpoint.order["num_streams"] != streams:
        streams = fit_num_streams(sum(source.epoch_samples for source in sources), batch, streams)
    return SampleOrder(
        sources=sources,
        seed=config.train.seed,
        global_batch_size=batch,
        num_streams=streams,
        block_size_samples=block_size_samples(config.data.model_copy(update={"num_streams": streams}), batch),
        version=version if version in VERSIONS else VERSION,
        run_size_samples=config.data.run_size_samples,
        shuffle_shards=config.data.shuffle_shards,
    )


def describe_rate_change(before: Schedule, now: Schedule, step: int) -> str:
    """Says how the learning rate differs from that of the schedule so far, at the step that a run resumes from.

    Args:
        step: steps that have been done.
    """
    if step >= now.total_steps:
        return ""
    last, planned, rate = before.rate(max(0, step - 1)), before.rate(step), now.rate(step)
    if math.isclose(rate, planned, rel_tol=RATE_TOLERANCE) or math.isclose(rate, last, rel_tol=RATE_TOLERANCE):
        return ""
    steps = f", since the run has {now.total_steps:,} steps instead of {before.total_steps:,}"
    return f"learning rate: {last:.3g} at step {step:,} -> {rate:.3g} at step {step + 1:,}" + (
        steps if now.total_steps != before.total_steps else ""
    )


def agree_on_plan(config: TrainingConfig, world: World) -> RunPlan:
    """Plans with rank 0's choice of checkpoint, or raises its error: another rank might see another checkpoint."""
    plan: RunPlan | None = None
    found: Any = None
    if world.is_main:
        try:
            plan = plan_run(config)
            found = Start(plan.checkpoint)
        except (ConfigError, StorageError, ManifestError) as error:
            found = error
    found = gather_objects(found, world)[0]
    if isinstance(found, Exception):
        raise found
    return plan or plan_run(config, found)


def _check_steps_are_left(config: TrainingConfig, total_steps: int, done: int) -> None:
    if total_steps < done:
        raise ConfigError(
            f"train.max_steps, max_samples, num_epochs: amount to {total_steps:,} steps, but run.name="
            f"{config.run.name} has already done {done:,}; ask for more, or choose another run.name"
        )


def architecture_of(config: TrainingConfig) -> Architecture:
    """The architecture of the model that a run trains."""
    row = get_architecture(config.model.name)
    return replace(
        row,
        has_logit_bias=config.train.loss == "sigmoid",
        image_size_px=config.model.image_size_px or row.image_size_px,
        activation=config.model.activation or row.activation,
    )


def check_model(config: TrainingConfig) -> None:
    """Checks that the model can be built and trained as configured. Raises ConfigError."""
    model, train, row = config.model, config.train, get_architecture(config.model.name)
    if model.image_size_px is not None and model.image_size_px % row.image_step_px:
        raise ConfigError(
            f"model.image_size_px={model.image_size_px}: {row.name} cuts images into squares of {row.image_step_px} pixels; "
            f"use a multiple of {row.image_step_px}"
        )
    if model.lock and not model.weights:
        raise ConfigError(f"model.lock={list(model.lock)}: an encoder that is not trained needs weights; give model.weights")
    if len(set(model.lock)) > 1:
        raise ConfigError(f"model.lock={list(model.lock)}: nothing but the temperature would be trained; lock one encoder")
    if train.patch_dropout and row.patch_size_px is None:
        raise ConfigError(f"train.patch_dropout={train.patch_dropout}: {row.name} has no patches; it is for ViTs, set it to 0")
    if train.sync_batch_norm and (train.device == "cpu" or row.patch_size_px is not None):
        raise ConfigError(
            f"train.sync_batch_norm=True: {row.name} on train.device={train.device} has no batch norm that can be "
            "synchronised; it is for ResNets on GPUs, set it to false"
        )
    if train.sync_batch_norm and train.micro_batch_size is not None:
        raise ConfigError(
            f"train.micro_batch_size={train.micro_batch_size}: with train.sync_batch_norm all samples are embedded together; "
            "unset one of the two"
        )
    if train.sync_batch_norm and config.cluster.min_workers < config.cluster.max_workers:
        raise ConfigError(
            f"cluster.num_workers={config.cluster.num_workers}: fewer workers than the maximum take "
            "micro-batches, and with train.sync_batch_norm all samples are embedded together; give one number"
        )
    if train.compile is True and "image" in train.activation_checkpointing and row.patch_size_px is None:
        raise ConfigError(
            f"train.activation_checkpointing=image: with train.compile {row.name}'s batch norm would count twice; "
            "unset one of the two"
        )


def plan_schedule(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """The learning-rate schedule in steps, whatever units its parts were given in. Raises ConfigError where it does not fit."""
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
    """(key as given, steps) of a part of the schedule; ("", default) where no key was given."""
    one = Fraction(1)
    steps_of_one = {"steps": one, "samples": one / config.train.global_batch_size, "epochs": one * steps_per_epoch}
    for unit, steps in steps_of_one.items():
        value = getattr(config.optimizer, f"{part}_{unit}")
        if value is not None:
            return f"optimizer.{part}_{unit}={value}", math.ceil(Fraction(str(value)) * steps)
    return "", default


def _with_activation(config: TrainingConfig, checkpoint: Checkpoint | None) -> TrainingConfig:
    """Pins the activation: the checkpoint's, else the configured one, else the one that the weights' file states."""
    model = config.model
    if model.activation is None and checkpoint is not None:
        told = TrainingConfig.model_validate(checkpoint.config).model.activation
    elif model.weights and checkpoint is None:
        told = initial_activation(model)
    else:
        told = model.activation
    return config.model_copy(update={"model": model.model_copy(update={"activation": told})})


def batch_norm_caveat(config: TrainingConfig, architecture: Architecture, world_size: int, micro_batch_size: int | None) -> str:
    """The reason why a run's losses will depend on its number of ranks, or on memory; empty where they do not."""
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

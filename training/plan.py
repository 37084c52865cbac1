"""What a run will do, decided from its configuration, its data set and its checkpoints, before any worker starts.

The launcher calls `plan_run` to refuse bad input in seconds and to pin the data set's version; every rank calls it again
with the pinned configuration and gets the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.config import Architecture, get_architecture
from pipeline.storage import Storage, open_storage
from training.checkpoint import Checkpoint, CheckpointStore, Position
from training.config import ConfigError, TrainingConfig
from training.data_sets import DataSet, block_size_samples, open_data_sets
from training.evaluation.runner import check_evaluation
from training.sample_order import SampleOrder


@dataclass(frozen=True)
class RunPlan:
    """Everything that is settled before the first step.

    Attributes:
        config: with the versions of its data sets pinned.
        run: the run's own folder: checkpoints, metrics.jsonl, config.yaml.
        start: where the run goes on; step 0 for a new one.
        total_steps: the schedule's length.
    """

    config: TrainingConfig
    architecture: Architecture
    data_sets: tuple[DataSet, ...]
    order: SampleOrder
    run: Storage
    checkpoints: CheckpointStore
    checkpoint: Checkpoint | None
    start: Position
    total_steps: int


def plan_run(config: TrainingConfig) -> RunPlan:
    """Opens what the run reads and writes, and checks that it fits together. Starts nothing and writes nothing.

    Raises:
        ValueError: (ConfigError, StorageError, ManifestError) bad input, with value, rule and remedy.
    """
    config = TrainingConfig.model_validate(config.model_dump(include=set(TrainingConfig.model_fields)))
    architecture = architecture_of(config)
    if config.optimizer.warmup_steps and config.train.max_steps and config.optimizer.warmup_steps >= config.train.max_steps:
        raise ConfigError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps}: the run ends at train.max_steps="
            f"{config.train.max_steps}, before the warm-up does; lower the one or raise the other"
        )
    if config.train.sync_batch_norm and (config.train.device == "cpu" or architecture.patch_size_px is not None):
        raise ConfigError(
            f"train.sync_batch_norm=True: {config.model.name} on train.device={config.train.device} has no batch norm that can "
            "be synchronised; it is for ResNets on GPUs, leave it out"
        )
    run = open_storage(f"{config.run.dir.rstrip('/')}/{config.run.name}")
    checkpoints = CheckpointStore(run, config.checkpoint.keep_last)
    checkpoint = checkpoints.latest()
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
    total_steps = config.train.num_epochs * order.steps_per_epoch
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    if config.cluster.num_workers > config.train.global_batch_size:
        raise ConfigError(
            f"cluster.num_workers={config.cluster.num_workers}: every worker needs at least one sample of a step; "
            f"use at most train.global_batch_size={config.train.global_batch_size} workers"
        )
    if checkpoint is not None:
        _check_continues(checkpoint, config, order, data_sets)
    start = checkpoint.position if checkpoint is not None else Position(step=0, samples_seen=0)
    return RunPlan(
        config, architecture, data_sets, order, run, checkpoints, checkpoint, start, total_steps
    )  # fmt: skip


def architecture_of(config: TrainingConfig) -> Architecture:
    """The model that a run trains."""
    return replace(get_architecture(config.model.name), has_logit_bias=config.train.loss == "sigmoid")


def batch_norm_caveat(config: TrainingConfig, architecture: Architecture, world_size: int) -> str:
    """Why a run's losses will depend on how many ranks it has, or on memory; empty where they do not."""
    train = config.train
    if architecture.patch_size_px is not None:
        return ""
    parts = []
    if world_size > 1 and not train.sync_batch_norm:
        parts.append(f"{world_size} workers without train.sync_batch_norm")
    if train.micro_batch_size is not None:
        parts.append(f"train.micro_batch_size={train.micro_batch_size}")
    if not parts:
        return ""
    return (
        f"{config.model.name} with {' and '.join(parts)}: batch norm sees a part of the batch, and the losses depend on which"
    )


def _check_continues(
    checkpoint: Checkpoint, config: TrainingConfig, order: SampleOrder, data_sets: tuple[DataSet, ...]
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
    for key, ours, theirs in (
        ("model.name", config.model.name, before.model.name),
        ("train.loss", config.train.loss, before.train.loss),
    ):
        if ours != theirs:
            differences.append(f"{key}={ours} (it has {theirs})")
    if differences:
        raise ConfigError(
            f"run.name={config.run.name}: this run has the checkpoint {checkpoint.folder}, which does not continue into "
            f"this configuration: {'; '.join(differences)}; restore these values, or choose another run.name"
        )

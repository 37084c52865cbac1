"""The Ray Train adapter: runs `train` in every worker of a Ray Train group.

Ray starts the workers, makes them one process group, and starts the group again when a worker or its node is lost, or when the
cluster has room for more of them; `train` then resumes from the run's last checkpoint. Ray does not manage checkpoints:
checkpoint/store.py alone owns them. What driver, controller and workers tell each other meanwhile is in training/launch/.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import ray
import ray.train
import ray.util.metrics
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from model.clip import CLIP
from pipeline.dataset.manifest import ManifestError
from pipeline.metrics import Publisher, publish_requests
from pipeline.storage.address import open_storage
from training import ray_internals
from training.checkpoint.writer import RunTakenError
from training.config import TrainingConfig, refuse_auto_on_an_empty_cluster
from training.distributed import COLLECTIVE_TIMEOUT, World
from training.errors import EvaluationFailedError, RunError
from training.evaluation.runner import evaluate
from training.first_step_check import Finding, check_first_step
from training.launch.driver_wait import in_a_thread, wait_for
from training.launch.group_size import GroupSize
from training.launch.mailbox import Mailbox
from training.launch.run_link import RunLink
from training.launch.worker_resources import cpus_per_worker, describe_resources, ray_folder, uses_gpu
from training.metrics import TRAINING
from training.record.goodput import Launch
from training.record.run_record import TrainResult
from training.run_plan import plan_run
from training.step.model_setup import autocast
from training.step.non_finite import DivergedError
from training.stop_signals import StoppedError
from training.trainer import train


def run_training(config: TrainingConfig) -> TrainResult:
    """Trains on the Ray cluster that this process has joined, and waits for the end.

    In a process's main thread, SIGINT and SIGTERM save a checkpoint and end the run.

    Raises:
        StoppedError: the run was asked to stop before workers trained, or between two groups of them.
        ConfigError: bad input; no worker was started.
        RunError: the run cannot continue, and starting workers again would not help.
        ray.train.TrainingFailedError: the workers failed more often than `cluster.max_failures`.
    """
    config, launch = plan_run(config).config, Launch()
    if config.run.resume == "never":  # it was obeyed; workers that are started again resume from their own checkpoints
        config = config.model_copy(update={"run": config.run.model_copy(update={"resume": "auto"})})
    trainer = _trainer(config, _train_on_this_worker, launch)
    try:
        result = _fit(trainer, config, launch, saves=True)
    except TrainingFailedError as error:
        for cause in getattr(error, "worker_failures", {}).values():
            if isinstance(cause, RunError | StoppedError):
                raise cause from error
        raise
    if "ended" in result.return_value:
        raise RunError(result.return_value["ended"])
    return TrainResult(**result.return_value)


def check_workers(config: TrainingConfig) -> list[Finding]:
    """Tries a run's first step on workers of the Ray cluster that this process has joined.

    Raises:
        ray.train.TrainingFailedError: a worker failed.
    """
    config = plan_run(config).config
    cluster = config.cluster.model_copy(update={"max_failures": 0})
    config, launch = config.model_copy(update={"cluster": cluster}), Launch()
    result = _fit(_trainer(config, _check_on_this_worker, launch), config, launch)
    return [Finding(**finding) for finding in result.return_value["findings"]]


def run_evaluation(clip: CLIP, config: TrainingConfig) -> dict[str, float]:
    """Evaluates a model on the Ray cluster that this process has joined, as `training.evaluation.runner.evaluate` does.

    Raises:
        ray.train.TrainingFailedError: the workers failed more often than `cluster.max_failures`.
    """
    model = ray.put((clip.architecture, clip.state_dict()))
    settings = TrainingConfig.model_validate(config.model_dump(include=set(TrainingConfig.model_fields)))
    with tempfile.TemporaryDirectory(prefix="rayclip-") as folder:
        launch = Launch()
        result = _fit(_trainer(settings, _evaluate_on_this_worker, launch, {"model": model}, folder), settings, launch)
    return dict(result.return_value)


def _fit(trainer: TorchTrainer, config: TrainingConfig, launch: Launch, saves: bool = False) -> Any:
    """Waits for a group's result. In a thread, where Ray Train does not replace the handler of SIGINT."""

    def describe() -> str:
        cluster, total, nodes = config.cluster, ray.cluster_resources(), ray.nodes()
        each = " and ".join([f"{cpus_per_worker(cluster, total, nodes)} CPUs", *["a GPU"] * uses_gpu(cluster, total)])
        has = describe_resources(total, ray.available_resources(), nodes)
        return f"cluster.num_workers={cluster.num_workers}, each with {each}; {has}"

    return wait_for(in_a_thread(trainer.fit), _mailbox(launch), describe, saves)


def _trainer(
    config: TrainingConfig,
    work: Callable[[dict[str, Any]], Any],
    launch: Launch,
    more: dict[str, Any] | None = None,
    folder: str | None = None,
) -> TorchTrainer:
    """A group of workers that each do the work.

    Args:
        more: arguments of the work besides the configuration.
        folder: where Ray keeps its own state; None: with the run.
    """
    cluster, resources = config.cluster, ray.cluster_resources()
    refuse_auto_on_an_empty_cluster("cluster", cluster, resources)
    use_gpu, cpus = uses_gpu(cluster, resources), cpus_per_worker(cluster, resources, ray.nodes())
    check_every_s = cluster.resize_every_s if cluster.min_workers < cluster.max_workers else None
    group_size = GroupSize(_mailbox(launch), ray_internals.RayCluster(), check_every_s)
    return TorchTrainer(
        cast(Any, work),  # Ray's annotation does not know that a result may be returned
        train_loop_config={"config": config.model_dump(mode="json"), "launch": asdict(launch), **(more or {})},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())),
        scaling_config=cast(Any, ScalingConfig)(  # annotated as Train's first version, which has no ranges
            num_workers=cluster.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
            elastic_resize_monitor_interval_s=cluster.resize_every_s,
        ),
        run_config=RunConfig(
            # Ray resumes a name that it knows, by its own rules; ours are in the run's folder, so each launch is new to it.
            name=f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=folder or ray_folder(open_storage(config.run.uri)),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[ray_internals.controller_callback(group_size)],
        ),
    )


def _check_on_this_worker(arguments: dict[str, Any]) -> Any:
    config = TrainingConfig.model_validate(arguments["config"])
    return {"findings": [asdict(one) for one in check_first_step(config, World.from_process_group(_device(config)))]}


def _evaluate_on_this_worker(arguments: dict[str, Any]) -> Any:
    config = TrainingConfig.model_validate(arguments["config"])
    publish_requests(ray.util.metrics, run=config.run.name)
    device = _device(config)
    architecture, state = ray.get(arguments["model"])
    clip = CLIP(architecture)
    clip.load_state_dict(state)
    clip.to(device).eval()
    with autocast(config.train, device):
        return evaluate(clip, config.evaluation, World.from_process_group(device))


def _train_on_this_worker(arguments: dict[str, Any]) -> Any:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config, launch = TrainingConfig.model_validate(arguments["config"]), Launch(**arguments["launch"])
    world, mailbox = World.from_process_group(_device(config)), _mailbox(launch)
    if mailbox.get("ended"):
        return {"ended": mailbox.get("ended")}
    publish_requests(ray.util.metrics, run=config.run.name)  # of every rank: each reads its own samples
    try:
        with Publisher(TRAINING, {"run": config.run.name}, ray.util.metrics) as metrics:
            link = RunLink(mailbox, metrics, ray_internals.removal_deadline)
            return asdict(train(config, world, link, launch))
    except (DivergedError, EvaluationFailedError) as error:
        # every rank raises it; returned, so that Ray does not try the same again
        return {"ended": str(error)}
    except (RunError, ManifestError) as error:  # this rank's alone: the others fail as they miss it, and end when started again
        if not (isinstance(error, RunTakenError) and error.by_own_launch):
            mailbox.put("ended", str(error))
        raise


def _device(config: TrainingConfig) -> torch.device:
    return torch.device("cpu") if config.train.device == "cpu" else get_device()


def _mailbox(launch: Launch) -> Mailbox:
    return Mailbox(launch.id, ray_internals.put_value, ray_internals.get_value)

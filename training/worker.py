"""The Ray Train adapter: the same `train`, called by every worker of a Ray Train group.

Ray starts the workers, makes them one process group, and starts the group anew when a worker dies; `train` then resumes from
the run's last checkpoint. Ray is given no checkpoint of ours: training/checkpoint.py alone owns them.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.storage import Storage
from training.config import TrainingConfig
from training.distributed import World
from training.plan import plan_run
from training.trainer import TrainResult, train

logger = logging.getLogger(__name__)


def run_training(config: TrainingConfig) -> TrainResult:
    """Trains on the Ray cluster that this process has joined, and waits for the end.

    Raises:
        ConfigError: bad input; no worker was started.
        ray.train.TrainingFailedError: the workers failed more often than `cluster.max_failures`.
    """
    plan = plan_run(config)
    config, run = plan.config, plan.run
    cluster = config.cluster
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0 if cluster.use_gpu == "auto" else cluster.use_gpu
    cpus = _cpus_per_worker(config, ray.cluster_resources(), ray.nodes())
    trainer = TorchTrainer(
        cast(Any, _train_on_this_worker),  # Ray's annotation leaves out that a result may be returned
        train_loop_config={"config": config.model_dump(mode="json")},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            # Ray resumes a name that it knows, by its own rules; ours are in the run's folder, so each launch is new to it.
            name=f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=_ray_folder(run),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    result: Any = trainer.fit()
    return TrainResult(**result.return_value)


def _train_on_this_worker(arguments: dict[str, Any]) -> Any:
    """What Ray calls in each worker."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config = TrainingConfig.model_validate(arguments["config"])
    device = torch.device("cpu") if config.train.device == "cpu" else get_device()
    return asdict(train(config, World.from_process_group(device)))


def _ray_folder(run: Storage) -> str:
    """Where Ray keeps its own state of a launch: beside ours, or in a scratch folder when ours is in object storage."""
    local = run.local_path("ray")
    return str(local) if local is not None else str(Path(tempfile.gettempdir()) / "rayclip" / "ray")


def _cpus_per_worker(config: TrainingConfig, resources: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    """`cluster.cpus_per_worker`, with auto resolved and an impossible demand refused.

    A cluster whose autoscaler adds nodes may have more in a minute than it has now, so the total is not checked; a worker
    that is larger than any node is likely a slip, and would wait for ever.
    """
    wanted, workers = config.cluster.cpus_per_worker, config.cluster.num_workers
    largest = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    total = int(resources.get("CPU", 0))
    if wanted == "auto":
        return max(1, min(largest, total // workers))
    if wanted > max(1, largest):
        logger.warning("cluster.cpus_per_worker=%s: no node has more than %s CPUs now; waiting for one", wanted, largest)
    return wanted

"""The Ray Train adapter: the same `train`, called by every worker of a Ray Train group.

Ray starts the workers, makes them one process group, and starts the group anew when a worker or its node is gone, or when the
cluster has room for more of them; `train` then resumes from the run's last checkpoint. Ray is given no checkpoint of ours:
checkpoint/store.py alone owns them. What the run is asked for meanwhile goes through the cluster's own key-value store.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.util.metrics
import torch
from ray._private.state import state as ray_state
from ray.experimental import internal_kv
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from model.clip import CLIP
from pipeline.dataset.manifest import ManifestError
from pipeline.metrics import Publisher, publish_requests
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.checkpoint.writer import RunTakenError
from training.config import TrainingConfig, refuse_auto_on_an_empty_cluster
from training.distributed import COLLECTIVE_TIMEOUT, World
from training.errors import RunError
from training.evaluation.runner import evaluate
from training.first_step_check import Finding, check_first_step
from training.metrics import TRAINING, publish_row
from training.record.goodput import Launch
from training.record.run_record import TrainResult
from training.record.tracking import only_a_warning
from training.run_plan import plan_run
from training.save_and_stop import Request, on_sigterm
from training.step.model_setup import autocast
from training.step.non_finite import DivergedError
from training.trainer import train

logger = logging.getLogger(__name__)

SAVED_BEFORE_DEADLINE_S = 15.0
"""A node that will be taken away: how long before that its last checkpoint begins, besides the one at the notice; half of
the notice where that is shorter."""
NO_DEADLINE_S = 120.0
"""A node that will be taken away and does not say when: after how long Ray starts the workers anew."""
DEAD_KNOWN_AFTER_S = 30.0
"""How long a restart waits at most until the cluster knows that a node is gone."""
RESIZE_WAITS_S = 60.0
"""How long a change of the group's size waits for the checkpoint before it."""


def run_training(config: TrainingConfig) -> TrainResult:
    """Trains on the Ray cluster that this process has joined, and waits for the end.

    In a process's main thread, SIGTERM saves a checkpoint and ends the run.

    Raises:
        ConfigError: bad input; no worker was started.
        RunError: the run cannot go on, and starting workers anew would not help.
        ray.train.TrainingFailedError: the workers failed more often than `cluster.max_failures`.
    """
    config, launch = plan_run(config).config, Launch()
    if config.run.resume == "never":  # it was obeyed; workers that are started anew go on with their own checkpoints
        config = config.model_copy(update={"run": config.run.model_copy(update={"resume": "auto"})})
    trainer = _trainer(config, _train_on_this_worker, launch)
    with on_sigterm(lambda: _ask_to_stop(launch.id)):
        try:
            result: Any = trainer.fit()
        except TrainingFailedError as error:
            for cause in getattr(error, "worker_failures", {}).values():
                if isinstance(cause, RunError):
                    raise cause from error
            raise
    if "ended" in result.return_value:
        raise RunError(result.return_value["ended"])
    return TrainResult(**result.return_value)


def check_workers(config: TrainingConfig) -> list[Finding]:
    """What the workers of a run would meet in their first step, on the cluster that this process has joined.

    Raises:
        ray.train.TrainingFailedError: a worker failed.
    """
    config = plan_run(config).config
    cluster = config.cluster.model_copy(update={"max_failures": 0})
    result: Any = _trainer(config.model_copy(update={"cluster": cluster}), _check_on_this_worker, Launch()).fit()
    return [Finding(**finding) for finding in result.return_value["findings"]]


def run_evaluation(clip: CLIP, config: TrainingConfig) -> dict[str, float]:
    """Evaluates a model on the Ray cluster that this process has joined, as `training.evaluation.runner.evaluate` does.

    Raises:
        ray.train.TrainingFailedError: the workers failed more often than `cluster.max_failures`.
    """
    model = ray.put((clip.architecture, clip.state_dict()))
    settings = TrainingConfig.model_validate(config.model_dump(include=set(TrainingConfig.model_fields)))
    with tempfile.TemporaryDirectory(prefix="rayclip-") as folder:
        result: Any = _trainer(settings, _evaluate_on_this_worker, Launch(), {"model": model}, folder).fit()
    return dict(result.return_value)


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
    cluster = config.cluster
    refuse_auto_on_an_empty_cluster("cluster", cluster, ray.cluster_resources())
    look_every_s = cluster.resize_every_s if cluster.min_workers < cluster.max_workers else None
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0 if cluster.use_gpu == "auto" else cluster.use_gpu
    cpus = _cpus_per_worker(config, ray.cluster_resources(), ray.nodes())
    return TorchTrainer(
        cast(Any, work),  # Ray's annotation leaves out that a result may be returned
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
            storage_path=folder or _ray_folder(open_storage(config.run.uri)),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[cast(Any, _Resizing(launch.id, look_every_s))],
        ),
    )


def _check_on_this_worker(arguments: dict[str, Any]) -> Any:
    config = TrainingConfig.model_validate(arguments["config"])
    device = torch.device("cpu") if config.train.device == "cpu" else get_device()
    return {"findings": [asdict(one) for one in check_first_step(config, World.from_process_group(device))]}


def _evaluate_on_this_worker(arguments: dict[str, Any]) -> Any:
    config = TrainingConfig.model_validate(arguments["config"])
    publish_requests(ray.util.metrics, run=config.run.name)
    device = torch.device("cpu") if config.train.device == "cpu" else get_device()
    architecture, state = ray.get(arguments["model"])
    clip = CLIP(architecture)
    clip.load_state_dict(state)
    clip.to(device).eval()
    with autocast(config.train, device):
        return evaluate(clip, config.evaluation, World.from_process_group(device))


def _train_on_this_worker(arguments: dict[str, Any]) -> Any:
    """What Ray calls in each worker."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config, launch = TrainingConfig.model_validate(arguments["config"]), Launch(**arguments["launch"])
    device, mail = torch.device("cpu") if config.train.device == "cpu" else get_device(), _Mail(launch.id)
    if mail.get("ended"):
        return {"ended": mail.get("ended")}
    publish_requests(ray.util.metrics, run=config.run.name)  # of every rank: each reads its own samples
    try:
        with Publisher(TRAINING, {"run": config.run.name}, ray.util.metrics) as metrics:
            return asdict(train(config, World.from_process_group(device), _RayLink(launch.id, metrics), launch))
    except DivergedError as error:  # every rank raises it; returned, so that Ray does not try the same again
        return {"ended": str(error)}
    except (RunError, ManifestError) as error:  # of this rank: the others fail as they miss it, and end when they are started
        if not (isinstance(error, RunTakenError) and error.by_own_launch):
            mail.put("ended", str(error))
        raise


class _Mail:
    """Words between the driver, the controller and rank 0 of one launch."""

    def __init__(self, launch: str) -> None:
        self._launch = launch

    def put(self, name: str, word: str) -> None:
        internal_kv._internal_kv_put(f"{self._launch}/{name}", word, namespace="rayclip")

    def get(self, name: str) -> str:
        word = internal_kv._internal_kv_get(f"{self._launch}/{name}", namespace="rayclip")
        return word.decode() if word else ""


class _RayLink:
    """What driver, controller and cluster ask of a run, and Ray's metrics of it; rank 0's `training.save_and_stop.Link`."""

    def __init__(self, launch: str, metrics: Publisher) -> None:
        self._mail, self._metrics = _Mail(launch), metrics
        self._save = self._mail.get("save")  # what an earlier group was asked for is done with
        self._deadline: float | None = None

    def requested(self) -> Request:
        request = Request.STOP if self._mail.get("stop") else Request.NONE
        save = self._mail.get("save")
        if save != self._save:
            self._save = save
            request |= Request.SAVE
        if self._node_leaves():
            request |= Request.SAVE
        return request

    def saving(self) -> Callable[[int], None]:
        word = self._save

        def committed(step: int) -> None:
            self._metrics.set("checkpoint_step", step)
            self._metrics.set("checkpoint_time", time.time())
            self._mail.put("saved", word)

        return committed

    def recorded(self, row: Mapping[str, Any]) -> None:
        publish_row(row, self._metrics)

    def _node_leaves(self) -> bool:
        """Whether a checkpoint is due because one of the group's nodes will be taken away: at once, and again near the end.

        Ray's public get_preemption_info() makes all ranks wait for each other; this reads what it would give.
        """
        info = get_train_context().preemption_context.preemption_info
        if info is None:
            return False
        deadline = info.deadline_ms / 1000 if info.deadline_ms else time.time() + NO_DEADLINE_S
        if self._deadline is None:
            left_s = max(0.0, deadline - time.time())
            self._deadline = deadline - min(SAVED_BEFORE_DEADLINE_S, left_s / 2)
            print(f"a node of this run will be taken away in {left_s:,.0f} s: saving a checkpoint", flush=True)
            return True
        if time.time() > self._deadline:
            self._deadline = float("inf")
            return True
        return False


class _Resizing(ControllerCallback, WorkerGroupCallback):
    """In Ray's controller: a running group saves before its size changes, and its new size is that of the cluster as it is."""

    def __init__(self, launch: str, look_every_s: float | None) -> None:
        """`look_every_s`: how often the cluster is looked at; None: the group has one size."""
        self._launch, self._look_every_s = launch, look_every_s
        self._runs = False
        self._looked_at = time.monotonic()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if self._look_every_s is not None and time.monotonic() - self._looked_at > self._look_every_s / 2:
            self._looked_at = time.monotonic()
            _look_at_the_cluster_anew()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        names = [type(state).__name__ for state in (previous_state, current_state)]
        if names[1] == "SchedulingState":
            self._runs = names[0] == "ResizingState"
        elif names[1] == "RestartingState":
            with only_a_warning("nodes that are gone cannot be looked for"):
                _wait_for_the_dead()
            _look_at_the_cluster_anew()
            if self._look_every_s is not None:  # its policy goes on for a moment by what it was told before
                time.sleep(ElasticScalingPolicy.GET_RESERVED_RESOURCES_INTERVAL_S)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        if not self._runs:
            return
        with only_a_warning("the group is resized without a checkpoint before"):
            mail, wanted = _Mail(self._launch), uuid.uuid4().hex
            mail.put("save", wanted)
            deadline = time.monotonic() + RESIZE_WAITS_S
            while mail.get("saved") != wanted and time.monotonic() < deadline:
                time.sleep(0.05)


def _wait_for_the_dead() -> None:
    """Until the cluster knows of nodes that do not answer, or that said they would go by now: a group that counts on them would
    wait for a minute in vain.

    Workers of a lost node are missed at once, by the others' broken connections; the node itself only after health checks.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max_workers=32) as pool:
        silent = {node["NodeID"] for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if not answers}
    silent |= {
        node for node, deadline_ms in ray_state.get_draining_nodes().items() if 0 < deadline_ms < (time.time() + 5) * 1000
    }
    deadline = time.monotonic() + DEAD_KNOWN_AFTER_S
    while silent & {node["NodeID"] for node in ray.nodes() if node["Alive"]} and time.monotonic() < deadline:
        time.sleep(0.1)


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet takes a connection."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=1.0).close()
        return True
    except OSError:
        return False


def _look_at_the_cluster_anew() -> None:
    """Ray does each 20 s; until then it would ask for a group that has lost a node in its old size."""
    with only_a_warning("the cluster's nodes cannot be looked at; Ray does in 20 s"):
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        coordinator: Any = default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=5)


def _ask_to_stop(launch: str) -> None:
    """Asks the workers, from a thread: a signal's handler must not wait for the network."""
    print("asked to stop: the workers save a checkpoint after this step and end", flush=True)
    threading.Thread(target=_Mail(launch).put, args=("stop", "yes")).start()


def _ray_folder(run: Storage) -> str:
    """Where Ray keeps its own state of a launch: beside ours, or in a scratch folder when ours is in object storage."""
    local = run.local_path("ray")
    return str(local) if local is not None else str(Path(tempfile.gettempdir()) / "rayclip" / "ray")


def _cpus_per_worker(config: TrainingConfig, resources: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    """`cluster.cpus_per_worker`, with auto resolved and an impossible demand refused.

    A cluster whose autoscaler adds nodes may have more in a minute than it has now, so the total is not checked; a worker
    that is larger than any node is likely a slip, and would wait for ever.
    """
    wanted, workers = config.cluster.cpus_per_worker, config.cluster.max_workers
    largest = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    total = int(resources.get("CPU", 0))
    if wanted == "auto":
        return max(1, min(largest, total // workers))
    if wanted > max(1, largest):
        logger.warning("cluster.cpus_per_worker=%s: no node has more than %s CPUs now; waiting for one", wanted, largest)
    return wanted

"""All that reaches into Ray's private modules and the names of its loggers, read in Ray 2.60.

A new version of Ray may move or change any of it without a word. tests/unit/training/test_ray_internals.py fails on another
version and when a name is gone: compare Ray's code with its use here for each entry of INTERNALS, SILENCED and UNWANTED_LINES,
then set READ_IN.

Nothing of Ray is imported before a function needs it: every process of a job imports this file to set its loggers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

READ_IN = "2.60"
"""The version of Ray whose code was read."""
INTERNALS = (
    "ray._private.ray_logging.global_worker_stdstream_dispatcher",
    "ray._private.services.ConsolePopen",
    "ray._private.services.get_ray_address_from_environment",
    "ray._private.state.state._connect_and_get_accessor",
    "ray._private.state.state.actor_table",
    "ray._private.state.state.get_draining_nodes",
    "ray._private.worker._global_node",
    "ray._private.worker.print_to_stdstream",
    "ray.core.generated.common_pb2.WORKER",
    "ray.core.generated.common_pb2.WorkerExitType.NODE_OUT_OF_MEMORY",
    "ray.core.generated.common_pb2.WorkerExitType.SYSTEM_ERROR",
    "ray.core.generated.gcs_pb2.WorkerTableData",
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator",
    "ray.experimental.internal_kv._internal_kv_del",
    "ray.experimental.internal_kv._internal_kv_get",
    "ray.experimental.internal_kv._internal_kv_put",
    "ray.train.v2._internal.execution.callback.ControllerCallback.after_controller_state_update",
    "ray.train.v2._internal.execution.callback.ControllerCallback.before_controller_execute_resize_decision",
    "ray.train.v2._internal.execution.callback.WorkerGroupCallback.after_worker_group_poll_status",
    "ray.train.v2._internal.execution.context.get_train_context",
    "ray.train.v2._internal.execution.controller.state.ResizingState",
    "ray.train.v2._internal.execution.controller.state.RestartingState",
    "ray.train.v2._internal.execution.controller.state.RunningState",
    "ray.train.v2._internal.execution.controller.state.SchedulingState",
    "ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError",
    "ray.train.v2._internal.execution.failure_handling.default.logger",
    "ray.train.v2._internal.execution.scaling_policy.elastic.ElasticScalingPolicy.GET_RESERVED_RESOURCES_INTERVAL_S",
)
"""Every private attribute that is used here."""
SILENCED = (
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray.data._internal.progress",
    "ray.data.exceptions",
    "ray.train.v2._internal.execution.controller.placement_group_cleaner",
)
"""Loggers whose level is set here; each is named after its module."""
UNWANTED_LINES = {
    "ray.data._internal.execution.streaming_executor_state": "An exception was raised from a task of operator",
    "ray.train.torch.config": "Setting up process group for",
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client": "Failed to send resource request for",
    "ray.train.v2._internal.execution.worker_group.worker_group": "Attempting to start training worker group",
}
"""Logger, named after its module -> start of its lines that no job's log needs."""


def is_own_ray() -> bool:
    """Returns whether this process has started the Ray that it is connected to, instead of joining one."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.head)


def worker_deaths() -> tuple[int, int]:
    """Returns how many workers have died without an error of their own so far, and how many live.

    On a Ray of this process's own, all workers count. On another one, where other jobs have some, it is the job's actors, and
    how often they were started again: of tasks, Ray's tables do not tell the job.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    words: Any = common_pb2
    if is_own_ray():
        killed = (words.WorkerExitType.SYSTEM_ERROR, words.WorkerExitType.NODE_OUT_OF_MEMORY)
        table = cast(Any, gcs_pb2).WorkerTableData
        rows = [table.FromString(row) for row in state._connect_and_get_accessor().get_worker_table()]
        rows = [row for row in rows if row.worker_type == words.WORKER]
        return sum(not row.is_alive and row.exit_type in killed for row in rows), sum(row.is_alive for row in rows)
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actor_table(None, job).values()
    return sum(actor["NumRestarts"] for actor in actors), sum(actor["State"] != "DEAD" for actor in actors)


def address_to_join() -> tuple[str, int] | None:
    """Host and port of the head that `ray.init()` would join, by RAY_ADDRESS or as `ray start` noted it; None: it starts one.

    Raises:
        ValueError: RAY_ADDRESS is no address.
    """
    from ray._private.services import get_ray_address_from_environment

    found: str | None = get_ray_address_from_environment(cast(Any, None), None)
    if found is None or found == "local":
        return None
    host, _, port = found.rpartition("://")[2].rpartition(":")
    if not host:
        raise ValueError(found)
    return host.strip("[]"), int(port)


_started: list[int] = []
"""Process groups that Ray was started in."""


def end_started_groups() -> None:
    """Ends what is left of a Ray that this process has started: agents may outlive a node that is stopped while it starts."""
    for group in _started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    _started.clear()


@contextlib.contextmanager
def in_a_process_group_of_its_own() -> Iterator[None]:
    """Context in which Ray starts its processes outside of the terminal's process group.

    Ctrl-C reaches all processes of that group. Ray's own ignore it, but not those that they start.
    """
    from ray._private import services as ray_services

    services: Any = ray_services
    before: Any = services.ConsolePopen

    class Popen(before):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, process_group=0)
            _started.append(self.pid)

    services.ConsolePopen = Popen
    try:
        yield
    finally:
        services.ConsolePopen = before


# ------------------------------------------------------------------------------------------------------- the key-value store


def put_value(key: str, value: str) -> None:
    """Puts a value into the cluster's own key-value store."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, namespace="rayclip")


def delete_value(key: str) -> None:
    """Removes a key, if it is there."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace="rayclip")


def get_value(key: str) -> str:
    """The value of a key, or an empty string."""
    from ray.experimental import internal_kv

    value = internal_kv._internal_kv_get(key, namespace="rayclip")
    return value.decode() if value else ""


KEY_VALUES = (put_value, get_value, delete_value)
"""For `pipeline.ingest.attempts.Attempts`."""


# ------------------------------------------------------------------------------------------------- Ray Train's worker group


class GroupWatcher(Protocol):
    """Hears what Ray Train's controller does; runs in the controller's process (training/launch/group_size.py)."""

    def polled(self) -> None: ...
    def running(self) -> None: ...
    def scheduling(self, group_runs: bool) -> None: ...
    def restarting(self) -> None: ...
    def resizing(self) -> None: ...


def controller_callback(watcher: GroupWatcher) -> Any:
    """A callback for `ray.train.RunConfig` that tells the watcher what the controller does."""
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.state import (
        ResizingState,
        RestartingState,
        RunningState,
        SchedulingState,
    )

    class Callback(ControllerCallback, WorkerGroupCallback):
        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            watcher.polled()

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if isinstance(current_state, SchedulingState):
                watcher.scheduling(group_runs=isinstance(previous_state, ResizingState))
            elif isinstance(current_state, RestartingState):
                watcher.restarting()
            elif isinstance(current_state, RunningState):
                watcher.running()

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            watcher.resizing()

    return Callback()


def removal_deadline() -> float | None:
    """In a worker: seconds since 1970 at which a node of its group is removed; 0: at an unknown time; None: none is.

    Ray's public get_preemption_info() makes all ranks wait for each other; this reads what it would return.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return None
    return info.deadline_ms / 1000 if info.deadline_ms else 0.0


class RayCluster:
    """The `training.launch.group_size.Cluster` that this process has joined."""

    @property
    def recount_delay_s(self) -> float:
        from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

        return float(ElasticScalingPolicy.GET_RESERVED_RESOURCES_INTERVAL_S)

    def alive_nodes(self) -> list[dict[str, Any]]:
        import ray

        return [node for node in ray.nodes() if node["Alive"]]

    def draining_nodes(self) -> dict[str, float]:
        from ray._private.state import state

        return {node: deadline_ms / 1000 for node, deadline_ms in state.get_draining_nodes().items()}

    def recount_resources(self) -> None:
        import ray
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        coordinator: Any = default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=5)


# -------------------------------------------------------------------------------------------------------------- its loggers


def set_up_worker() -> None:
    """Tells a Ray worker which Ray is its own, and keeps lines without information out of the job's log.

    Ray Train's cleaner asks for the state of an actor without an address. Ray then looks for a Ray on this machine. Where there
    are several it fails, or asks another one, by which the cleaner would take its own controller to be dead.

    Without a dashboard the cleaner gets no answer, and says so every second. When a worker group starts, Ray Train says what it
    requests, then the same again, who has joined, and how; the first and the third stay. While it waits for workers, it shows a
    traceback each minute, where the driver says what is missing (driver_wait.py).
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)
    _drop_unwanted_lines()


def _drop_unwanted_lines() -> None:
    for name in UNWANTED_LINES:
        # A filter, since Ray Train sets the levels of its loggers again.
        logging.getLogger(name).addFilter(_is_wanted)
    logging.getLogger("ray.train.v2._internal.execution.failure_handling.default").addFilter(_is_no_wait_for_workers)


def _is_no_wait_for_workers(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return type(getattr(error, "controller_failure", None)).__name__ != "WorkerGroupStartupTimeoutError"


def sort_worker_lines(to_print: Callable[[str, list[str]], list[str]]) -> None:
    """Lets a function choose which lines of workers are printed here, once this process has joined Ray.

    Args:
        to_print: (name of the process, its lines) -> lines to print.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher
    from ray._private.worker import print_to_stdstream

    def show(data: dict[str, Any]) -> None:
        process = f"{data.get('actor_name') or data.get('task_name') or ''} pid={data.get('pid')}, ip={data.get('ip')}".strip()
        lines = to_print(f"{process}{', stderr' if data['is_err'] else ''}", data["lines"])
        if lines:
            print_to_stdstream(data | {"lines": lines}, ignore_prefix=False)

    dispatcher.remove_handler("ray_print_logs")  # the name by which ray.shutdown() removes it
    dispatcher.add_handler("ray_print_logs", show)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(UNWANTED_LINES[record.name])


def quieten_ray_data() -> None:
    """Silences Ray Data's own account of a job, which reports its progress and its errors itself; warnings stay."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.raise_original_map_exception = True  # so that the driver knows an error of ours by its class
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
    _drop_unwanted_lines()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that its bars are off


def quieten_submission() -> None:
    """Silences the account that Ray's job client gives of its own work; a file too large to upload is still reported."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.working_dir").setLevel(logging.ERROR)  # warns of .git, which nobody wants there

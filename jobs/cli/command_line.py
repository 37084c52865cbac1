"""What every entry point does the same way: parse, report bad input, join or start Ray, tell success by the exit code.

Exit codes: 0 done; 1 failed on the way, or for want of a storage that answers: it may be tried again; 2 bad input, which is
found before any work starts where it can be; 143 stopped by SIGTERM with all its work saved, which the same command goes on
with.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.cli import runtime_env
from jobs.cli.config import Config, dump_config, load_config
from jobs.cli.job_parser import JobParser
from pipeline.errors import ConfigError, InputError, StorageAwayError
from training.config import ClusterConfig
from training.errors import RunError

BAD_INPUT = (ConfigError, InputError)
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STOPPED = 1, 2, 128 + 15
RAY_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # would show every line of the workers twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how fast a dead worker, and the end, is noticed; default 2 s
    "RAY_worker_niceness": "0",  # at Ray's 15 its own servers take turns first, and all threads of a step wait for one
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours counts rows and successes
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # how fast a node's notice that it will go is heard; default 5 s
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # for workers that wait for one that is gone; default 30 s
}
"""Defaults for what Ray reads from the environment; a value that is set already stays."""
CLUSTER_SETTINGS = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",  # a node that does not answer is given up after some 5 s; default 16 s and more
}
"""Likewise, for what reads it where a cluster is started: the head's environment for a cluster that is not ours."""
SAYS_NOTHING = ("Attempting to start training worker group", "Setting up process group for")
"""How lines of Ray Train begin that no job's log needs."""


def parser(description: str | None, job: str | None = None) -> JobParser:
    """The options that all jobs share.

    Args:
        description: the job's docstring.
        job: its name in `jobs.cli.job_keys.JOBS`.
    """
    result = JobParser(description, job)
    result.add_argument("--config", metavar="RECIPE", default="default", help="path or name of a recipe (default: %(default)s)")
    result.add_argument("--show-config", action="store_true", help="print the resolved configuration and exit")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="override of the recipe")
    return result


def run(
    arguments: JobParser,
    job: Callable[[Config, argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a job and returns its exit code. Bad input is one message, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = arguments.parse_intermixed_args(argv)
    try:
        config = load_config(options.config, options.overrides, arguments.job)
        if options.show_config:
            print(dump_config(config), end="")
            return 0
        os.environ.update(runtime_env.variables_of(config.cluster.runtime_env))  # such as an endpoint, which is asked early
        return job(config, options) or 0
    except (RunError, StorageAwayError) as error:
        print(f"{arguments.prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BAD_INPUT as error:
        print(f"{arguments.prog}: bad input:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in str(error).splitlines()), file=sys.stderr)
        return EXIT_BAD_INPUT


def check_folder(option: str, path: str | None) -> None:
    """Raises ConfigError, before the work, where the file of an option cannot be written for want of its folder."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{option}={path}: there is no folder {Path(path).parent}; make it, or choose another place")


def connect_ray(cluster: ClusterConfig) -> None:
    """Joins the Ray cluster of this machine or of RAY_ADDRESS, and starts a local Ray where there is none.

    Raises:
        ConfigError: Ray does not take `cluster.runtime_env`.
    """
    for name, value in (RAY_SETTINGS | CLUSTER_SETTINGS).items():
        os.environ.setdefault(name, value)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # a log has no colours
    import ray

    if ray.is_initialized():
        return
    # A Ray that we start for ourselves is reachable on this machine only. Left to its default, ray.init() would turn token
    # authentication on for it and write ~/.ray/auth_token, after which other clusters on this machine refuse submissions.
    if not os.environ.get("RAY_ADDRESS") and not _a_cluster_runs_here():
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        include_dashboard=False,
        logging_level=logging.WARNING,
        runtime_env=runtime_env.for_ray_init(
            cluster.runtime_env,
            {
                "worker_process_setup_hook": "jobs.cli.command_line.quieten_worker",
                # for the processes of a cluster that runs already
                "env_vars": {name: os.environ[name] for name in RAY_SETTINGS},
            },
        ),
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)  # after Ray's own, which shows where it was in C++; training has another


def _stop(_number: int, _frame: object) -> None:
    print("stopped, as asked; what is committed stays, and the same command goes on", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_STOPPED)


def quieten_worker() -> None:
    """Runs in every Ray worker: keeps lines that say nothing out of the job's log.

    Without a dashboard Ray Train's cleaner cannot ask for the state of an actor, and says so every second. Of a worker group
    that starts, Ray Train says what it asks for, then the same again, who has joined, and how; the first and the third stay.
    """
    execution = "ray.train.v2._internal.execution"
    logging.getLogger(f"{execution}.controller.placement_group_cleaner").setLevel(logging.ERROR)
    for name in (f"{execution}.worker_group.worker_group", "ray.train.torch.config"):
        # Ray Train sets the levels of its loggers anew, and leaves their filters.
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(SAYS_NOTHING))


def quieten_ray_data() -> None:
    """Ray Data's own account of a job is left out, for the job says how far it is; its warnings are not."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that its bars are off


def _a_cluster_runs_here() -> bool:
    """Whether `ray start` noted a cluster on this machine: the file that ray.init() itself reads."""
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    return (folder / "ray_current_cluster").exists()

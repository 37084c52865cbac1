"""Code that all jobs share: parse the command line, report bad input, join or start Ray, and return the exit code.

EXIT_CODES has all exit codes; docs/exit-codes.md says what each is for, and what a scheduler does after it.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from jobs.cli import runtime_env
from jobs.cli.config import Config, dump_config, load_config
from jobs.cli.failures import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_NOT_MEANT, HEAD_LOST
from jobs.cli.head_watch import HEAD
from jobs.cli.job_parser import JobParser
from jobs.cli.last_line import end_process_with_it, ends_process, leave, report
from jobs.cli.ray_address import refuse_a_cluster_that_is_gone
from jobs.cli.stopping import EXIT_INTERRUPTED, EXIT_TERMINATED, handlers_kept, is_stopping, run_until_stopped
from jobs.cli.worker_lines import WORKER_LINES
from pipeline.errors import ConfigError, InputError
from training.config import ClusterConfig
from training.errors import RunError
from training.ray_internals import in_a_process_group_of_its_own, set_up_worker, sort_worker_lines
from training.stop_signals import StoppedError
from training.wandb_environment import passed_on

BAD_INPUT = (ConfigError, InputError)
EXIT_STOPPED = EXIT_TERMINATED
EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_FAILED: "failed, try again",
    EXIT_BAD_INPUT: "bad input",
    EXIT_NOT_MEANT: "done, but not what was meant",
    EXIT_INTERRUPTED: "stopped by Ctrl-C with its work saved",
    EXIT_STOPPED: "stopped with its work saved",
}
"""The exit codes of all jobs. A failure is also a storage that does not respond, since trying again may help."""
RAY_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # would print every line of the workers twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker and the end are noticed; default 2 s
    "RAY_worker_niceness": "0",  # at Ray's 15, its own servers preempt the threads of a step
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the jobs show their own progress
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # how soon a node's preemption notice is seen; default 5 s
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # for workers that wait for a dead one; default 30 s
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # captions allocate other sizes in each step, which would fragment a GPU
}
"""Defaults for variables that Ray and PyTorch read; a value that is set already takes precedence."""
CLUSTER_SETTINGS = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",  # an unresponsive node is given up after about 5 s; default at least 16 s
}
"""Defaults that apply where a cluster is started; for an existing cluster, set them in the head's environment."""


def parser(description: str | None, job: str | None = None, place: str = "") -> JobParser:
    """The options that all jobs share.

    Args:
        description: the job's docstring.
        job: its name in `jobs.cli.job_keys.JOBS`.
        place: what the first word of its command line names; empty: such a word is a key.
    """
    result = JobParser(description, job)
    if place:
        result.add_argument("data", metavar="DATA", type=_place, help=place)
    result.add_argument("--config", metavar="RECIPE", default="default", help="path or name of a recipe (default: %(default)s)")
    result.add_argument("--show-config", action="store_true", help="print the resolved configuration and exit")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="override of the recipe")
    return result


def _place(word: str) -> str:
    """The first word of a command line that begins with a place."""
    if re.match(r"[a-z_]+(\.[a-z0-9_]+)+=", word) and not Path(word).exists():
        raise argparse.ArgumentTypeError(f"{word} is a key; name the place first, then the keys")
    return word


def run(
    arguments: JobParser,
    job: Callable[[Config, argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a job and returns its exit code. SIGINT and SIGTERM end it at every moment (stopping.py)."""
    return run_until_stopped(lambda: _run(arguments, job, argv))


def _run(arguments: JobParser, job: Callable[[Config, argparse.Namespace], int | None], argv: Sequence[str] | None) -> int:
    """Reports each error as one message, never as a traceback (last_line.py)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = arguments.parse_intermixed_args(argv)
    config = None
    try:
        config = load_config(options.config, options.overrides, arguments.job)
        if options.show_config:
            print(dump_config(config), end="")
            return EXIT_DONE
        os.environ.update(runtime_env.variables_of(config.cluster.runtime_env))  # e.g. an S3 endpoint, which is needed early
        return job(config, options) or EXIT_DONE
    except Exception as error:
        if is_stopping() or isinstance(error, StoppedError):  # Ray makes an error of a stop
            raise
        return report(error, arguments.prog, arguments.job, config)


def main(arguments: JobParser, job: Callable[[Config, argparse.Namespace], int | None]) -> NoReturn:
    """Runs a job as this process, and ends it with the exit code."""
    end_process_with_it()
    try:
        code = run(arguments, job)
    except SystemExit as end:  # of the parser, or of a signal
        code = end.code if isinstance(end.code, int) else EXIT_DONE if end.code is None else EXIT_FAILED
    leave(code)


def check_folder(option: str, path: str | None) -> None:
    """Raises ConfigError, before any work, if the folder of an option's file does not exist."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{option}={path}: there is no folder {Path(path).parent}; create it or choose another one")


def connect_ray(cluster: ClusterConfig) -> None:
    """Joins the Ray cluster of this machine or of RAY_ADDRESS, or starts a local Ray if there is none.

    Raises:
        ConfigError: Ray rejects `cluster.runtime_env`.
        RunError: there is no cluster at RAY_ADDRESS.
    """
    for name, value in (RAY_SETTINGS | CLUSTER_SETTINGS).items():
        os.environ.setdefault(name, value)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # a log has no colours
    import ray

    if ray.is_initialized():
        return
    # A local Ray is reachable on this machine only. By default, ray.init() would turn on token authentication for it and
    # write ~/.ray/auth_token, after which other clusters on this machine refuse submissions.
    if not os.environ.get("RAY_ADDRESS") and not _a_cluster_runs_here():
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    refuse_a_cluster_that_is_gone()
    with handlers_kept(), in_a_process_group_of_its_own():
        _init(cluster)


def _init(cluster: ClusterConfig) -> None:
    import ray

    ray.init(
        include_dashboard=False,
        logging_level=logging.WARNING,
        runtime_env=runtime_env.for_ray_init(
            cluster.runtime_env,
            {
                "worker_process_setup_hook": f"{set_up_worker.__module__}.{set_up_worker.__name__}",
                # for the processes of a cluster that runs already
                "env_vars": {name: os.environ[name] for name in RAY_SETTINGS} | passed_on(os.environ),
            },
        ),
    )
    sort_worker_lines(WORKER_LINES.to_print)
    if ray.is_initialized() and ends_process():  # not with a stand-in for ray.init; the process of others is theirs to end
        HEAD.start(ray.get_runtime_context().gcs_address, _end_without_head)


def _end_without_head(silent_s: float) -> None:
    error = RunError(f"{HEAD_LOST}; it has been silent for {silent_s:.0f} s")
    leave(report(error, Path(sys.argv[0]).name, None, None), tidy=False)


def _a_cluster_runs_here() -> bool:
    """Returns True if `ray start` started a cluster on this machine, by the file that ray.init() reads."""
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    return (folder / "ray_current_cluster").exists()

"""Submits a job to a Ray cluster, shows its log, and exits with the job's own exit code.

    python jobs/submit.py -- python jobs/train.py
    python jobs/submit.py --address http://HEAD:8265 --working-dir . -- python jobs/train.py --config vit_b_32 ...
    python jobs/submit.py --no-wait -- python jobs/ingest.py ...    prints the id, and commands to follow and stop it
    python jobs/submit.py --wait-for ID                             shows the rest of a job's log, exits with its code

A misspelled key of a RayCLIP job is refused here, before the cluster is contacted, and the job gets the recipe's
`cluster.runtime_env`, and this machine's WANDB_PROJECT and the like, but no key. A lost connection is opened again. Ctrl-C
leaves the job running and prints the command that stops it.
`ray job submit -- python jobs/train.py` submits the same job, but exits with 1 for every code other than 0; --wait-for ID then
gives the job's own.

exit codes:
    0    the job is done
    1    the job failed; or the cluster cannot be reached, or refuses the token
    2    bad input: the job did not start, and would not start if it were submitted again
    3    the job is done, but its result is not what was meant, and would be the same again (docs/exit-codes.md)
    143  the job was stopped (`ray job stop`); jobs/train.py saved its work, and the same command resumes
    130  Ctrl-C here, and 143 for SIGTERM here; the job continues
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from jobs.cli.command_line import BAD_INPUT, EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED
from jobs.cli.config import RECIPES, load_config
from jobs.cli.job_keys import import_job
from jobs.cli.runtime_env import check
from pipeline.errors import ConfigError
from pipeline.storage.url_credentials import has_userinfo, without_userinfo
from training.config import TrackingConfig
from training.errors import RunError
from training.ray_internals import quieten_submission
from training.wandb_environment import SETTINGS, passed_on, with_environment

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SILENCE_S = 120.0
"""A connection without a line for this long may be dead: a new one is opened."""
COMMAND = "rayclip"
"""The installed command, whose first word is a job's name."""
GIVE_UP_S = 300.0
"""Time after which an unresponsive cluster is given up."""
PAUSE_S = 2.0
"""Pause between two attempts."""
SAYS_NOTHING = "has constructor arguments in the object store and max_restarts > 0"
"""Part of a harmless line that Ray logs about its own actors whenever Ray Data or Ray Train starts."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments()
    options = arguments.parse_args(argv)
    if bool(options.wait_for) == bool(options.entrypoint):
        arguments.error("give the job's command after --, or --wait-for ID")
    try:
        if options.wait_for:
            return follow(connect(options.address), options.wait_for)
        runtime_env = recipe_runtime_env(options.entrypoint, options.working_dir)
        if any(_job_at(options.entrypoint, place) for place in range(len(options.entrypoint))):
            add_wandb_variables(runtime_env)
        if options.working_dir:
            runtime_env["working_dir"] = options.working_dir
        client = connect(options.address)
        job = submit(client, shlex.join(options.entrypoint), options.submission_id, runtime_env)
        if options.no_wait:
            print(job)
            say(f"submitted to {client.get_address()}\n{_what_next(client, job)}")
            return 0
        say(f"submitted {job} to {client.get_address()}")
        return follow(client, job)
    except BAD_INPUT as error:
        say("bad input:\n" + "\n".join(f"  {line}" for line in str(error).splitlines()))
        return EXIT_BAD_INPUT
    except RunError as error:
        say(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("interrupted; `ray job list` says whether the job was submitted")
        return 128 + signal.SIGINT


def say(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- the job's configuration


def recipe_runtime_env(entrypoint: Sequence[str], working_dir: str | None) -> dict[str, Any]:
    """`cluster.runtime_env` of a command that runs a RayCLIP job; empty for other commands, and if the recipe is not here.

    Raises:
        ConfigError: the recipe, an override or the runtime environment is invalid.
        SystemExit: an option is invalid.
    """
    place = next((place for place in range(len(entrypoint)) if _job_at(entrypoint, place)), None)
    if place is None:
        return {}
    arguments = import_job(_job_at(entrypoint, place)).arguments()
    arguments.prog = entrypoint[place]
    options = arguments.parse_intermixed_args(list(entrypoint[place + 1 :]))
    recipe = options.config
    if Path(recipe).suffix or len(Path(recipe).parts) > 1:  # a path, relative to the job's folder
        recipe = str(Path(working_dir or ".") / recipe)
        if not Path(recipe).is_file():
            say(f"--config={options.config}: is not on this machine, so it is not checked before the job starts")
            return {}
    runtime_env = dict(load_config(recipe, options.overrides, arguments.job).cluster.runtime_env)
    if runtime_env:
        check(runtime_env)
    return runtime_env


def add_wandb_variables(runtime_env: dict[str, Any]) -> None:
    """Adds this machine's WANDB_PROJECT and the like, which Ray would not send. Those of the recipe take precedence.

    The key is not among them: Ray writes a runtime environment into its logs.

    Raises:
        ConfigError: one of them is invalid.
    """
    with_environment(TrackingConfig(), os.environ)
    variables = passed_on(os.environ, SETTINGS)
    if variables:
        say(f"passes on {', '.join(variables)}; the key of W&B comes from the environment of the nodes")
        runtime_env["env_vars"] = variables | dict(runtime_env["env_vars"] if "env_vars" in runtime_env else {})


def _job_at(words: Sequence[str], place: int) -> str:
    """The name of the job with a recipe that a word of a command names; empty if it names none.

    It is the path of a job, here or in the container image, or the word behind `rayclip`.
    """
    path = PurePath(words[place])
    ours = (PurePath("jobs"), RECIPES.parent, PurePath("/opt/rayclip/jobs"))
    is_path = path.parent in ours and path.suffix == ".py"
    is_command = place > 0 and PurePath(words[place - 1]).name == COMMAND and path.name == words[place]
    if not (is_path or is_command) or not (RECIPES.parent / f"{path.stem}.py").is_file():
        return ""
    return path.stem if hasattr(import_job(path.stem), "arguments") else ""


# --------------------------------------------------------------------------------------------------------------- the cluster


def connect(address: str | None) -> JobSubmissionClient:
    """Connects to the cluster's job server.

    Args:
        address: of the dashboard; None means RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the Ray of this machine. Unlike with
            `ray job submit`, the argument takes precedence over these.

    Raises:
        ConfigError: the address is invalid.
        RunError: the server cannot be reached, or needs another token.
    """
    import requests
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    quieten_submission()
    known = {name: os.environ[name] for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    shown = next(filter(None, (address, *known.values())), "the Ray of this machine")
    if has_userinfo(shown):
        raise ConfigError(
            f"{without_userinfo(shown)}: holds a user name or a password; a cluster takes a token, RAY_AUTH_TOKEN"
        )
    try:
        if "://" in shown and not urlsplit(shown).hostname:
            raise ValueError("names no host")
        for name in known if address else ():  # Ray would prefer them to the argument
            del os.environ[name]
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RunError(f"{shown}: {_about_the_token(error)}") from None
    except (RuntimeError, ValueError) as error:  # requests' InvalidURL is a ValueError
        raise ConfigError(
            f"{shown}: {_first_line(error)}; give the address of the head's dashboard, http://HOST:8265"
        ) from None
    except (ConnectionError, RayError, requests.RequestException) as error:
        raise RunError(
            f"{shown}: cannot be reached ({_first_line(error)}); is the head up, and is this the address of its dashboard, "
            "http://HOST:8265?"
        ) from None
    finally:
        os.environ.update(known)


def submit(client: JobSubmissionClient, entrypoint: str, submission_id: str | None, runtime_env: dict[str, Any]) -> str:
    """Submits the job. Returns its submission id.

    Raises:
        ConfigError: Ray rejects the job.
        RunError: the cluster gave an unexpected answer.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        return client.submit_job(entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env)
    except AuthenticationError as error:
        raise RunError(f"{client.get_address()}: {_about_the_token(error)}") from None
    except (requests.RequestException, ConnectionError) as error:
        raise RunError(
            f"{client.get_address()}: {_first_line(error)}; `ray job list` says whether the job was submitted"
        ) from None
    except (RuntimeError, TypeError, ValueError) as error:
        why = (str(error).rstrip(".\n ").splitlines() or [type(error).__name__])[-1]  # the rest is the server's traceback
        if isinstance(error, RuntimeError) and "status code 400" not in str(error):
            raise RunError(f"{client.get_address()}: the job was rejected ({why})") from None
        raise ConfigError(f"the job was rejected: {why}") from None


def follow(client: JobSubmissionClient, job: str) -> int:
    """Shows the job's log until it ends, and returns its exit code. Ctrl-C and SIGTERM end only this process.

    Raises:
        RunError: there is no such job, or the cluster stopped responding.
    """
    left_by = signal.SIGINT

    def terminate(_number: int, frame: Any) -> None:
        nonlocal left_by
        left_by = signal.SIGTERM
        cast(Any, signal.getsignal(signal.SIGINT))(signal.SIGINT, frame)  # asyncio's handler, if it runs: ends the log cleanly

    signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell start without it
    signal.signal(signal.SIGTERM, terminate)  # the first process of a container would ignore it
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        say(f"the job continues\n{_what_next(client, job)}")
        return 128 + left_by


def _follow(client: JobSubmissionClient, job: str) -> int:
    import aiohttp

    log, lost = _Log(client, job), False
    while True:
        try:
            asyncio.run(log.show())
            cut = ""
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            cut = _first_line(error)
        info = _state(client, job)
        if info.status.is_terminal() and (not cut or lost):
            return _exit_code(info, job)
        if cut and not lost and not info.status.is_terminal():
            say(f"the connection to the job's log is lost ({cut}); trying again, the job continues")
        lost = bool(cut)
        if lost:
            time.sleep(PAUSE_S)


class _Log:
    """Prints each line of a job's log once, across any number of connections."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job, self._shown = client, job, 0

    async def show(self) -> None:
        """Prints until the job ends or the connection is silent for SILENCE_S. The server always starts at the first line."""
        read = 0
        chunks: Any = self._client.tail_job_logs(self._job)
        async with contextlib.aclosing(chunks):
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        chunk = await anext(chunks)
                except (StopAsyncIteration, TimeoutError):
                    return
                new = chunk[max(0, self._shown - read) :]
                read += len(chunk)
                self._shown = max(self._shown, read)
                lines = new.splitlines(keepends=True)
                print("".join(line for line in lines if SAYS_NOTHING not in line), end="", flush=True)


def _state(client: JobSubmissionClient, job: str) -> Any:
    """Asks the cluster for the job's state, again until it answers. Raises RunError after GIVE_UP_S."""
    import requests
    from ray.exceptions import AuthenticationError

    began, said = time.monotonic(), False
    while True:
        try:
            return client.get_job_info(job)
        except AuthenticationError as error:
            raise RunError(f"{client.get_address()}: {_about_the_token(error)}") from None
        except (requests.RequestException, RuntimeError, OSError) as error:
            if "status code 404" in str(error):
                raise RunError(f"{job}: {client.get_address()} knows no such job; was the head restarted?") from None
            if time.monotonic() - began > GIVE_UP_S:
                raise RunError(
                    f"{client.get_address()}: stopped responding ({_first_line(error)}); the job may still run\n"
                    f"{_what_next(client, job)}"
                ) from None
            if not said:
                say(f"{client.get_address()} does not respond ({_first_line(error)}); trying for {GIVE_UP_S:.0f} s")
                said = True
        time.sleep(PAUSE_S)


def _exit_code(info: Any, job: str) -> int:
    """The exit code of a finished job, in the form of a shell."""
    from ray.job_submission import JobStatus

    if info.status == JobStatus.STOPPED:
        say(f"{job} was stopped")
        return EXIT_STOPPED
    code = info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        say(f"{job} is done")
        return 0
    if code is None:  # it never started, or was lost with its node
        say(f"{job} failed: {info.message}")
        return EXIT_FAILED
    say(f"{job} exited with code {code if code > 0 else f'{128 - code} (signal {-code})'}")
    return code if code > 0 else 128 - code


def _what_next(client: JobSubmissionClient, job: str) -> str:
    where = f"--address {client.get_address()}"
    return (
        f"  log:        ray job logs --follow {where} {job}\n"
        f"  state:      ray job status {where} {job}\n"
        f"  stop:       ray job stop {where} {job}\n"
        f"  exit code:  python jobs/submit.py {where} --wait-for {job}"
    )


def _about_the_token(error: Exception) -> str:
    """One line that replaces Ray's page of text, with the remedy."""
    text = str(error)
    if "Authentication failed" in text:
        return "the cluster does not accept the token; set RAY_AUTH_TOKEN (or ~/.ray/auth_token) to the head's"
    if "Authentication required" in text:
        return "needs a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to the head's"
    return "RAY_AUTH_MODE=token, but there is no token; set RAY_AUTH_TOKEN or write ~/.ray/auth_token"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _arguments() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--address", help="address of the head's dashboard (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine)"
    )
    result.add_argument("--working-dir", metavar="DIR", help="run the job in a copy of this folder")
    result.add_argument("--submission-id", metavar="ID", help="the job's name on the cluster (default: a new one)")
    result.add_argument("--no-wait", action="store_true", help="exit as soon as the job is submitted")
    result.add_argument("--wait-for", metavar="ID", help="submit nothing: follow this job and exit with its code")
    result.add_argument("entrypoint", nargs="*", metavar="-- COMMAND", help="the job, e.g. python jobs/train.py --config ...")
    return result


if __name__ == "__main__":
    sys.exit(main())

"""A run of W&B: opens one as `tracking.*` and the environment say, and says how to upload one that is offline.

In: `tracking.*`, and the id that a run has in all its starts. Out: W&B's own object of an open run. A server that is away, or
that refuses, costs a start at most SERVER_ANSWERS_WITHIN_S, and an end at most UPLOADED_WITHIN_S; the run is offline then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from training.config import TrackingConfig
from training.wandb_environment import tidy, with_environment

logger = logging.getLogger(__name__)

SERVER_ANSWERS_WITHIN_S = 30.0
"""Longest wait for W&B's server before a start continues without it; W&B's 90 s would be lost at every restart."""
TOO_MANY_REQUESTS = 429
UPLOADED_WITHIN_S = 60.0
"""Longest wait for what is left to upload at the end; without it, W&B waits as long as its server is away."""

GIVEN_UP = "filestream: fatal error: "
"""Text in the log of W&B's own process when it uploads no more rows."""


def open_run(
    tracking: TrackingConfig,
    run_name: str | None,
    run_id: str | None,
    folder: str | None,
    config: dict[str, Any] | None,
    job_type: str | None,
    holds_all: bool = False,
) -> Any:
    """Opens a W&B run, or resumes the one with a known id. It is offline if the server is away or refuses it.

    Args:
        run_name, folder, job_type: WANDB_NAME, WANDB_DIR and WANDB_JOB_TYPE take precedence.
        holds_all: all rows of the run will be logged, from its first step on. Then `wandb sync` of an offline run must replace
            what the server has: appended, its rows would get the steps after the server's last one.

    Raises:
        Exception: whatever W&B raises, if not even an offline run can be opened.
    """
    for line in tidy(os.environ):
        logger.warning(line)
    tracking = with_environment(tracking, os.environ)
    import wandb

    away = why_server_is_away() if tracking.wandb_mode == "online" else ""
    mode = "offline" if away else tracking.wandb_mode
    options: dict[str, Any] = {
        "project": tracking.wandb_project,
        "entity": tracking.wandb_entity,
        "name": None if "WANDB_NAME" in os.environ else run_name,
        "id": run_id,
        "reinit": "create_new",  # a run that other code has open in this process stays open
        "dir": _folder(folder),
        "config": config,
        "job_type": None if "WANDB_JOB_TYPE" in os.environ else job_type,
        "settings": wandb.Settings(
            silent=True,
            console="off",
            init_timeout=SERVER_ANSWERS_WITHIN_S,
            finish_timeout=UPLOADED_WITHIN_S,
            finish_timeout_raises=True,
        ),
    }
    resume: Literal["allow"] | None = "allow" if run_id else None
    if mode == "online":
        try:
            return wandb.init(mode=mode, resume=resume, **options)
        except Exception as error:  # no key, a refused one, no such entity
            away = " ".join(str(error).split())
            mode = "offline"
            _end_process()  # it would keep the id
    if away:
        logger.warning("W&B is logged offline: %s", away)
    resume = None if holds_all else resume
    try:
        return wandb.init(mode=mode, resume=resume, **options)
    except Exception:  # its process may have been killed
        _end_process()
        return wandb.init(mode=mode, resume=resume, **options)


def finish(run: Any) -> None:
    """Ends a run, once everything has arrived.

    Raises:
        Exception: the server was away for too long, or has refused rows. W&B then gives the upload up for good, says nothing
            of it to its caller, and has the reason only in its log.
    """
    run.finish()
    log = Path(run.settings.log_internal)
    if run.offline or not log.exists():
        return
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if GIVEN_UP in line:
            raise RuntimeError(line[line.index(GIVEN_UP) + len(GIVEN_UP) :].rstrip('"}'))


def sync_command(run: Any) -> str:
    """The command that uploads an offline run, once its server answers; empty for one that is online."""
    return f"wandb sync {shlex.quote(run.settings.sync_dir)}" if run.offline else ""


def why_server_is_away() -> str:
    """Reason why W&B's server cannot be used now; an empty string if it answers.

    W&B itself would wait for it while it starts, and could then not open the same run offline.
    """
    import wandb

    address = wandb.setup().settings.base_url
    request = urllib.request.Request(f"{address}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"})
    deadline, away = time.monotonic() + SERVER_ANSWERS_WITHIN_S, ""
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(request, timeout=SERVER_ANSWERS_WITHIN_S / 3).close()
            return ""
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != TOO_MANY_REQUESTS:
                return ""
            away = f"{address} answers with {error.code}"
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLError):
                return ""  # it answers; W&B may trust authorities that Python does not
            away = f"{address} does not answer ({' '.join(str(error).split())})"
        time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))
    return away


def _end_process() -> None:
    """Ends W&B's own process, unless other code has a run in it. The next run starts another one."""
    import wandb

    if wandb.run is None:
        with contextlib.suppress(Exception, SystemExit):  # it exits where its process had a code other than 0
            wandb.teardown()


def _folder(folder: str | None) -> str | None:
    """The folder that W&B writes to: WANDB_DIR if it can be used, else the given one."""
    stated = os.environ.get("WANDB_DIR")
    if stated is None:
        return folder
    try:
        Path(stated).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("WANDB_DIR=%s: cannot be used (%s); W&B writes to %s", stated, error.strerror, folder)
        return folder
    return str(Path(stated).absolute())

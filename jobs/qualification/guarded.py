"""Runs one section in a process of its own, so that an exception, a crash or a hang of one does not cost the others.

In: a `Section` and a `Scale`. Out: an `Outcome`, which is also the file SECTION.json; it is rewritten after each figure, so
that a section that hangs leaves those that it had.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from jobs.qualification.judgement import Outcome, SkipError
from jobs.qualification.scale import Scale
from jobs.qualification.sections import Section

LOG_CHARACTERS = 4_000
_ROOT = (__package__ or "").removesuffix("jobs.qualification")
"""Prefix of our packages: nothing in a checkout, `rayclip.` where RayCLIP is installed (setup.py)."""
PRELOADED = ["torch", "torch._dynamo", f"{_ROOT}training.trainer", f"{_ROOT}jobs.cli.config"]
"""Modules that most sections use, imported once."""
START: dict[str, str] = {"cpu": "forkserver", "cuda": "spawn"}
"""Ways in which processes start. CUDA cannot be used in a fork of a process that has asked for it, as an import might."""
OPTIONAL = ("pytest", "open_clip")
"""Packages without which a section is skipped."""


def run_guarded(section: Section, scale: Scale, folder: Path, limit_s: float) -> Outcome:
    """Runs a section for at most `limit_s`, and ends all processes that it has started."""
    path = _path(folder, section.name)
    context: Any = multiprocessing.get_context(START[scale.device])
    if START[scale.device] == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    began = time.monotonic()
    _write(Outcome(section.name, "running", tiny=scale.tiny), path)
    process = context.Process(target=_run, args=(section, scale, path), name=section.name)
    process.start()
    try:
        process.join(limit_s)
    finally:
        hangs = process.is_alive()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        if process.is_alive():  # before it had a group of its own
            process.kill()
        process.join()
    outcome = read_outcome(folder, section.name)
    assert outcome is not None
    if outcome.status == "running":
        outcome.status = "timed out" if hangs else "died"
        outcome.reason = f"after {limit_s:.0f} s" if hangs else f"exit code {process.exitcode}"
    outcome.seconds = round(time.monotonic() - began, 1)
    if outcome.status not in ("done", "skipped"):
        outcome.log = path.with_suffix(".log").read_text(errors="replace")[-LOG_CHARACTERS:]
    _write(outcome, path)
    return outcome


def read_outcome(folder: Path, name: str) -> Outcome | None:
    """The outcome of a section in an earlier run or a moment ago; None if there is none."""
    path = _path(folder, name)
    return Outcome.from_json(json.loads(path.read_text())) if path.exists() else None


def _run(section: Section, scale: Scale, path: Path) -> None:
    """Runs in the new process: figures go to the file, all output to a log beside it."""
    import torch

    os.setsid()
    with path.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        outcome = Outcome(section.name, "running", tiny=scale.tiny)
        try:
            if scale.tiny:
                torch.set_num_threads(1)  # small tensors gain nothing from more
            outcome.card = scale.card
            for figure in section.load()(scale):
                outcome.figures.append(figure)
                _write(outcome, path)
            outcome.status = "done"
        except SkipError as error:
            outcome.status, outcome.reason = "skipped", str(error)
        except BaseException as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL
            outcome.status = "skipped" if missing else "failed"
            outcome.reason = _first_line(error)
            outcome.traceback = traceback.format_exc()
        _write(outcome, path)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _write(outcome: Outcome, path: Path) -> None:
    """Replaces the file in one step: a section may be killed at any moment."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcome.as_json(), indent=1))
    part.replace(path)

"""The end of a job: one message, last on the terminal, then the exit code, whatever threads and libraries still do.

At its end an interpreter frees what the threads of libraries still use, which then abort the process: pyarrow's scanners and
gloo's groups did, with exit code 134 in place of ours. So a job leaves without that, after the handlers of `atexit` have run.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import NoReturn, TextIO

from jobs.cli.config import Config
from jobs.cli.failures import EXIT_BAD_INPUT, EXIT_NOT_MEANT, explain
from jobs.cli.head_watch import HEAD
from jobs.cli.traces import write_trace
from jobs.cli.worker_lines import WORKER_LINES

HEADINGS = {EXIT_BAD_INPUT: "bad input", EXIT_NOT_MEANT: "done, but not what was meant"}
LEAVES_WITHIN_S = 30.0
"""Time for ray.shutdown(), W&B and others; the process ends after it."""
SHARED_MEMORY = "/dev/shm"
RAYS_FOLDER = "RAY_TMPDIR"
"""Variable that names the folder of Ray's own files."""
OUTPUTS = {
    "train": "run.uri",
    "ingest": "ingest.output",
    "index": "index.output",
    "curate": "curate.data",
    "embed": "embed.output",
}
"""Job -> key of the folder that it writes; the others only read a run, and leave nothing there."""

_ends_process = False
_KEPT: list[BaseException] = []
"""Errors whose tracebacks hold what threads still use: to free a scanner of pyarrow may wait for its threads for ever."""


def report(error: BaseException, prog: str, job: str | None, config: Config | None) -> int:
    """Prints an error as the last message, and writes its traceback to a file if that says more. Returns the exit code.

    Args:
        job: its name in `jobs.cli.job_keys.JOBS`.
        config: None if there is none yet.
    """
    _KEPT.append(error)
    own = _own_folders(job, config)
    temporary = tempfile.gettempdir()
    places = [*own, *_named_folders(), temporary, os.environ.get(RAYS_FOLDER) or temporary, SHARED_MEMORY]
    ending = explain(error, places, HEAD.is_gone())
    lines = ending.text.splitlines() or [""]
    if not ending.is_whole:
        lines.append(_keep_traceback(error, job or prog.removesuffix(".py"), own))
    if ending.code in HEADINGS:
        lines = [f"{prog}: {HEADINGS[ending.code]}:", *(f"  {line}" for line in lines)]
    else:
        lines = [f"{prog}: {lines[0]}", *lines[1:]]
    terminal = _take_terminal() if _ends_process else sys.stderr
    with contextlib.suppress(OSError):
        print("\n".join(lines), file=terminal, flush=True)
    return ending.code


def end_process_with_it() -> None:
    """From now on, nothing follows the message of `report`."""
    global _ends_process
    _ends_process = True


def ends_process() -> bool:
    """True where a job is this process; False where it is a part of the caller's."""
    return _ends_process


def leave(code: int, tidy: bool = True) -> NoReturn:
    """Ends the process with an exit code; nothing is printed from here on.

    Args:
        tidy: run the handlers of `atexit`, which may wait for a cluster.
    """
    _take_terminal()
    if tidy:
        last_resort = threading.Timer(LEAVES_WITHIN_S, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
    os._exit(code)


def _take_terminal() -> TextIO:
    """Standard error for the caller alone: all else that this process writes to its streams from now on is lost."""
    WORKER_LINES.close()
    for stream in (sys.stdout, sys.stderr):  # where both are one log, the figures stand above the message
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    terminal = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return terminal


def _keep_traceback(error: BaseException, name: str, folders: list[str]) -> str:
    text = "".join(traceback.format_exception(error))
    of_workers = WORKER_LINES.tracebacks()
    if of_workers:
        text += f"\n\nTracebacks that workers printed:\n{of_workers}\n"
    path = write_trace(name, text, folders)
    return f"traceback: {path}" if path else "the traceback is lost, since no folder takes a file"


def _named_folders() -> list[str]:
    """Folders of files that options of the command line name, such as --output FILE."""
    words = [word for option, word in itertools.pairwise(sys.argv) if option.startswith("--")]
    return [str(Path(word).parent) for word in words if os.sep in word and "://" not in word]


def _own_folders(job: str | None, config: Config | None) -> list[str]:
    """The folder that the job writes, if it is on this machine."""
    if config is None or job not in OUTPUTS:
        return []
    section, _, key = OUTPUTS[job].partition(".")
    folder = str(getattr(getattr(config, section), key) or "").removeprefix("file://")
    return [folder] if folder and "://" not in folder else []

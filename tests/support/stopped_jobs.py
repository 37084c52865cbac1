"""Jobs as a person starts them in a terminal and stops them: each is a session of its own, of which nothing may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GONE_WITHIN_S = 60.0
"""Time in which the kernel and Ray's processes end after the job: its agents look for their raylet five times, every 2 s,
once they have started."""


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        code: as a shell shows it.
        started_s: time from its start to the signal, or to its end.
        took_s: time from the signal to its end.
        left: command lines of its session that were there GONE_WITHIN_S later.
    """

    code: int
    started_s: float
    took_s: float
    left: list[str]
    output: str


def run_job(
    arguments: list[str],
    number: int | None = None,
    when: Callable[[str, float], bool] = lambda _output, _seconds: True,
    environment: dict[str, str] | None = None,
    log: Path | None = None,
    timeout_s: float = 600.0,
) -> Ending:
    """Runs a job, and signals it once `when` (its output so far, seconds since its start) is true.

    SIGINT goes to the process group, as the terminal sends it; SIGTERM to the process alone.
    """
    log = log or Path("/dev/null")
    with log.open("wb") as file:
        began = time.monotonic()
        job = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background process of a shell ignores it
        )
    try:
        while number is not None and job.poll() is None and not when(_text(log), time.monotonic() - began):
            time.sleep(0.02)
        sent = time.monotonic()
        if number is not None and job.poll() is None:
            os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
        code = job.wait(timeout=timeout_s)
        ended = time.monotonic()
        while _session(job.pid) and time.monotonic() - ended < GONE_WITHIN_S:
            time.sleep(0.05)
        left = list(_session(job.pid).values())
    finally:
        for process in _session(job.pid):
            os.kill(process, signal.SIGKILL)
        job.wait()
    until = ended if number is None else sent
    return Ending(code if code >= 0 else 128 - code, until - began, ended - sent, left, _text(log))


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def _session(leader: int) -> dict[int, str]:
    """The processes of a session that have not ended: id -> command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:
            continue
    return found

"""Processes in Linux namespaces of their own, as stand-ins for machines and pods; needs root.

In: a bash script that sets a machine up. Out: its process id, and command lines that run a program inside. Nothing leads out of
a network namespace but the virtual interfaces that its maker adds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "mount")
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""PATH with the folders of system programs, which a user's lacks."""


def missing(*programs: str, install: str) -> str:
    """Return why nothing can be started in namespaces here, or which programs it lacks; "" if all is there.

    Args:
        programs: beside those that make namespaces.
        install: names of the packages that have them.
    """
    absent = [name for name in (*TOOLS, *programs) if shutil.which(name, path=SEARCH) is None]
    if absent:
        return f"not installed: {', '.join(absent)}; apt-get install {install}"
    if os.geteuid() != 0:
        return "namespaces need root"
    trial = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "true"]
    made = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"namespaces are not permitted here: {made.stderr.strip()}" if made.returncode else ""


class Namespaces:
    """A first process in namespaces of its own, which ends together with all that was started inside its PID namespace.

    Args:
        kinds: of net, pid, mount, uts and ipc.
        set_up: commands of bash, which run inside, joined by &&.
        log: the file for what they print.

    Raises:
        AssertionError: the commands fail, with their output.
    """

    def __init__(self, kinds: Sequence[str], set_up: str, log: Path) -> None:
        self.kinds = tuple(kinds)
        ready = log.with_suffix(".ready")
        ready.unlink(missing_ok=True)
        script = f"{set_up} && touch {ready} && while :; do sleep 3600 & wait; done"  # bash reaps orphans, as an init does
        options = [f"--{kind}" for kind in kinds] + ["--mount-proc"] * ("pid" in kinds)
        with log.open("ab") as file:
            command = ["unshare", *options, "--fork", "--kill-child", "bash", "-c", script]
            self.process = subprocess.Popen(command, env=os.environ | {"PATH": SEARCH}, stdout=file, stderr=file)
        wait_until(lambda: ready.exists() or self.process.poll() is not None, 30, log.read_text)
        assert ready.exists(), log.read_text()
        self.first = child_of(self.process)

    def enter(self, *kinds: str) -> list[str]:
        """Return the beginning of a command line that runs a program inside; without kinds, in all namespaces."""
        return ["nsenter", f"--target={self.first}", *(f"--{kind}" for kind in kinds or self.kinds)]

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)


def child_of(process: subprocess.Popen[bytes]) -> int:
    """Return the process id, out here, of the only child: the first process of a namespace that `unshare --fork` made."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: process.poll() is not None or children.read_text(), 30, lambda: "no child")
    return int(children.read_text())


def wait_until(holds: Callable[[], object], seconds: float, describe: Callable[[], str] = str) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: It does not within that time; with the description.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {describe()}"
        time.sleep(0.2)

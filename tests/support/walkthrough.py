"""A section of a page as a reader follows it: its commands, typed line by line into a shell, and the output it promises.

In: the page. Out: `Step`s, and a `Shell` to type them into. Blocks of commands are marked `sh`, blocks of output `text`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MARK = "WALK_OF_A_TEST"


@dataclass(frozen=True)
class Step:
    """Lines to type, and lines of output to expect in this order; `...` matches anything."""

    typed: tuple[str, ...]
    seen: tuple[str, ...]


def section(page: str, title: str) -> str:
    """The text below a second-level heading."""
    return re.split(r"^## ", page.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def steps(text: str) -> list[Step]:
    """The blocks of a section. A block of output belongs to the commands before it."""
    found: list[Step] = []
    for kind, block in _BLOCK.findall(text):
        lines = tuple(line for line in block.splitlines() if line.strip())
        found = [*found, Step(lines, ())] if kind == "sh" else [*found[:-1], Step(found[-1].typed, found[-1].seen + lines)]
    return found


def unseen(seen: tuple[str, ...], output: str) -> str | None:
    """The first expected line that does not appear in the output after the lines before it; None if all appear."""
    lines: Iterator[str] = iter(_COLOUR.sub("", output).splitlines())
    for line in seen:
        pattern = re.compile(".*".join(re.escape(part) for part in line.strip().split("...")))
        if not any(pattern.fullmatch(one.strip()) for one in lines):
            return line
    return None


class Shell:
    """A bash that takes typed lines; every process started in it carries a mark in its environment, by which it is found."""

    def __init__(self, folder: Path, environment: dict[str, str], log: Path) -> None:
        self._log, self._mark = log, uuid.uuid4().hex
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                cwd=folder,
                env=environment | {MARK: self._mark},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def type(self, line: str, timeout_s: float) -> tuple[int, str]:
        """Type one line, wait for its end and return (exit code, output)."""
        assert self._process.stdin is not None
        begin, end = self._log.stat().st_size, f"@{uuid.uuid4().hex}"
        self._process.stdin.write(f"{line}\nprintf '\\n{end} %s\\n' $?\n".encode())
        self._process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while True:
            with self._log.open("rb") as file:
                file.seek(begin)
                output = file.read().decode(errors="replace")
            found = re.search(rf"\n{end} (\d+)\n", output)
            if found:
                return int(found.group(1)), output[: found.start()]
            assert self._process.poll() is None, f"the shell has ended at: {line}\n{output}"
            assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still at: {line}\n{output}"
            time.sleep(0.05)

    def children(self) -> dict[int, str]:
        """Process id -> command line of every process that was started in it and still runs."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended, or belongs to another user
                continue
        found.pop(self._process.pid, None)
        return {process: command for process, command in found.items() if command}

    def close(self) -> None:
        """Kill every process that was started in it, and remove the page's folder for Ray if it is left."""
        left = set()
        while processes := self.children():
            for process in processes:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    variables = (Path("/proc") / str(process) / "environ").read_bytes().decode(errors="replace").split("\0")
                    left |= {one.partition("=")[2] for one in variables if one.startswith("RAY_TMPDIR=/tmp/walk.")}
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)

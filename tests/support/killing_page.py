"""A web page that kills the process that asks for it, as a row does over which a library crashes or memory runs out."""

from __future__ import annotations

import contextlib
import os
import signal
from http.server import BaseHTTPRequestHandler
from pathlib import Path

KILLED: list[int] = []
"""Process ids, in order."""


def kill_who_asks(handler: BaseHTTPRequestHandler) -> None:
    """A page of `tests.conftest.WebServer`: sends SIGKILL to the client, which must run on this machine."""
    client = _owner(_inode(handler.client_address[1]))
    KILLED.append(client)
    os.kill(client, signal.SIGKILL)


def _inode(port: int) -> str:
    """The socket of a port on loopback."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return next(fields[9] for line in lines if (fields := line.split())[1].endswith(f":{port:04X}") and fields[9] != "0")


def _owner(inode: str) -> int:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) == f"socket:[{inode}]":
                return int(link.parts[2])
    raise LookupError(f"no process has the socket {inode}")

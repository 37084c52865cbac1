"""Notices that the cluster's head is lost, before Ray ends this process without a word.

Ray ends a process whose head has not answered for `RAY_gcs_rpc_server_reconnect_timeout_s` (60 s), from a thread of its own, so
that no code of ours runs then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

EVERY_S = 2.0
ANSWER_S = 5.0
VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
RAYS_PATIENCE_S = 60.0
SHARE = 0.75
"""Part of Ray's patience after which the head is given up."""


def give_up_after_s() -> float:
    """Seconds of silence after which the head is given up."""
    return SHARE * float(os.environ.get(VARIABLE, RAYS_PATIENCE_S))


def watch_head(address: str, lost: Callable[[float], None], stopped: threading.Event, patience_s: float) -> None:
    """Calls `lost` with the seconds of silence once nobody listens at the address for `patience_s`; returns when stopped."""
    host, _, port = address.rpartition(":")
    heard = time.monotonic()
    while not stopped.wait(EVERY_S):
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            heard = time.monotonic()
        silent_s = time.monotonic() - heard
        if silent_s > patience_s and not stopped.is_set():
            lost(silent_s)
            return

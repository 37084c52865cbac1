"""Notices that the cluster's head is lost, before Ray ends this process without a word.

Ray ends a process whose head has not answered for `RAY_gcs_rpc_server_reconnect_timeout_s` (60 s), from a thread of its own, so
that no code of ours runs then.
"""

from __future__ import annotations

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


class HeadWatch:
    """Watches the head of the cluster that this process has joined."""

    def __init__(self) -> None:
        self._address: tuple[str, int] | None = None

    def start(self, address: str, lost: Callable[[float], None]) -> None:
        """Calls `lost`, in a thread, with the seconds of silence once nobody listens at the address for `give_up_after_s`."""
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        threading.Thread(target=self._watch, args=(lost, give_up_after_s()), name="head-watch", daemon=True).start()

    def is_gone(self) -> bool:
        """Returns True if this process has joined a cluster, and nobody listens at its head's address now."""
        return self._address is not None and not _answers(self._address)

    def _watch(self, lost: Callable[[float], None], patience_s: float) -> None:
        assert self._address is not None
        heard = time.monotonic()
        while True:
            time.sleep(EVERY_S)
            if _answers(self._address):
                heard = time.monotonic()
            elif time.monotonic() - heard > patience_s:
                lost(time.monotonic() - heard)
                return


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


HEAD = HeadWatch()
"""That of this process."""

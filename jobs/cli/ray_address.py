"""Checks, before Ray is joined, that something answers at the address of its head.

Ray itself tries for seven minutes, with a line of its core every few seconds.
"""

from __future__ import annotations

import os
import socket
import time

from pipeline.errors import ConfigError
from training.errors import RunError
from training.ray_internals import address_to_join

TRIED_FOR_S, EACH_S = 8.0, 4.0
"""Time for which a head that refuses connections, as while it starts, is asked again; and for each answer."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The start of an HTTP/2 connection, as every gRPC server expects and answers it: the preface, and empty SETTINGS."""


def refuse_a_cluster_that_is_gone() -> None:
    """Raises RunError if nothing answers where Ray would join a cluster, and ConfigError if that is no address."""
    named = os.environ.get("RAY_ADDRESS", "")
    try:
        address = address_to_join()
    except ValueError:
        raise ConfigError(f"RAY_ADDRESS={named}: is not the address of a Ray head; write HOST:PORT, or unset it") from None
    if address is None:
        return
    host, port = address
    problem, deadline = "", time.monotonic() + TRIED_FOR_S
    while time.monotonic() < deadline:
        problem = _problem(host, port, min(EACH_S, deadline - time.monotonic()))
        if not problem:
            return
        time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
    where = f"{host}:{port}"
    subject = f"RAY_ADDRESS={named}" if named not in ("", "auto") else f"the Ray cluster of this machine ({where})"
    remedy = "set RAY_ADDRESS to its head, or unset it" if named else "or end what is left of it with `ray stop`"
    raise RunError(f"{subject}: no Ray head answers there ({problem}); start the cluster, {remedy}")


def _problem(host: str, port: int, timeout_s: float) -> str:
    """Returns the reason why no head answers; an empty string if one does."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""  # it would not understand this
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except TimeoutError:
        return f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "" if len(answer) > 3 and answer[3] == 4 else "what answers is no Ray head"

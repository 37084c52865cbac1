"""How this process's requests to S3 go: counted where they are made, told to whoever listens.

In: boto3's events, and what is said of reads that go past it or are made again. Out: `requests`, `retries` and `failures`, as
pipeline/metrics.py describes them. Text tables are not among them: pyarrow reads those, with a client of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[str, int], None]
"""Takes what is counted, and by how much; from any thread."""

ANSWERS = (304, 404, 409, 412, 416)
"""What is no success, but says something of the object: not there, not so long, there already."""

_listener: Listener | None = None


def listen(listener: Listener) -> None:
    """Tells this one from here on, in place of an earlier one."""
    global _listener
    _listener = listener


def count(what: str, number: int = 1) -> None:
    if _listener is not None and number:
        _listener(what, number)


def watch(client: Any) -> None:
    """Counts what a client of boto3's does, its own retries among it."""
    client.meta.events.register("after-call.s3", _answered)
    client.meta.events.register("after-call-error.s3", _given_up)


def _answered(http_response: Any, context: dict[str, Any], **_: Any) -> None:
    _count_attempts(context)
    if http_response.status_code >= 300 and http_response.status_code not in ANSWERS:
        count("failures")


def _given_up(context: dict[str, Any], **_: Any) -> None:
    """No answer came, however often it was asked for."""
    _count_attempts(context)
    count("failures")


def _count_attempts(context: dict[str, Any]) -> None:
    count("requests")
    if "retries" in context:  # not where the request could not even be made
        count("retries", context["retries"]["attempt"] - 1)

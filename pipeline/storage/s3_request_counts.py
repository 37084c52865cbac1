"""Counts of this process's S3 requests, retries and failures, passed to one listener.

In: boto3's events, and calls from the reads that bypass boto3. Out: `requests`, `retries` and `failures`, as described in
pipeline/metrics.py. Reads of text tables are not counted: pyarrow makes them with its own client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[str, int], None]
"""Takes the name of a count and its increment; called from any thread."""

ANSWERS = (304, 404, 409, 412, 416)
"""Status codes that are answers about the object rather than failures: missing, too short, exists already."""

_listener: Listener | None = None


def listen(listener: Listener) -> None:
    """Sets the listener, replacing an earlier one."""
    global _listener
    _listener = listener


def count(what: str, number: int = 1) -> None:
    if _listener is not None and number:
        _listener(what, number)


def watch(client: Any) -> None:
    """Counts the requests of a boto3 client, including its own retries."""
    client.meta.events.register("after-call.s3", _answered)
    client.meta.events.register("after-call-error.s3", _given_up)


def _answered(http_response: Any, context: dict[str, Any], **_: Any) -> None:
    _count_attempts(context)
    if http_response.status_code >= 300 and http_response.status_code not in ANSWERS:
        count("failures")


def _given_up(context: dict[str, Any], **_: Any) -> None:
    """Called when a request got no answer after all its retries."""
    _count_attempts(context)
    count("failures")


def _count_attempts(context: dict[str, Any]) -> None:
    count("requests")
    if "retries" in context:  # missing if the request could not be sent at all
        count("retries", context["retries"]["attempt"] - 1)

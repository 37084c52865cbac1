"""Range reads of S3 objects through presigned URLs: one signature serves many reads of an object.

boto3 builds, signs and parses every request from scratch, which takes several times as long as transferring a megabyte. This
reads the same bytes through urllib3, from a URL that boto3 signed once. It is an optimisation only: on any failure it returns
None, and the caller falls back to boto3, which retries, handles proxies and certificates, and names the error.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from pipeline.storage.s3_request_counts import ANSWERS, count

VALID_S = 900
RENEW_S = 600
"""A URL signed with temporary keys expires with them; one that has expired is refused once and signed again."""
MAX_ADDRESSES = 10_000
MAX_REFUSALS = 3
"""Refusals in a row after which presigned URLs are no longer tried: a bucket's policy may forbid them."""


class PresignedReads:
    """Reads from one bucket. Thread-safe."""

    def __init__(self, client: Any, bucket: str, connect_timeout_s: float, read_timeout_s: float) -> None:
        import urllib3  # here, so that a machine without S3's packages can train from local files

        self._client, self._bucket = client, bucket
        self._pool = urllib3.PoolManager(maxsize=64, timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s))
        self._addresses: dict[str, tuple[float, str]] = {}
        self._refusals = 0
        self._lock = threading.Lock()

    def read_range(self, key: str, headers: dict[str, str]) -> bytes | None:
        """Reads the range that the headers ask for, perhaps with a condition; None: the caller must use boto3."""
        if self._refusals >= MAX_REFUSALS:
            return None
        try:
            address = self._address(key)
            headers = headers | {"Accept-Encoding": "identity"}
            answer = self._pool.request("GET", address, headers=headers, retries=False, redirect=False)
        except Exception:  # keys, network, proxy, certificate, a truncated body: boto3 reports which
            count("retries")
            return None
        if answer.status == 206:
            count("requests")
            self._refusals = 0
            return answer.data
        if answer.status not in ANSWERS:
            count("retries")
        if answer.status in (400, 401, 403):
            self._refusals += 1
            with self._lock:
                self._addresses.pop(key, None)
        return None

    def _address(self, key: str) -> str:
        """The presigned URL of an object. It grants access, so it must never be logged or shown in a message."""
        now = time.monotonic()
        with self._lock:
            signed_at, address = self._addresses.get(key, (now - RENEW_S, ""))
            if now - signed_at < RENEW_S:
                return address
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.clear()
            parameters = {"Bucket": self._bucket, "Key": key}
            address = self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=VALID_S)
            self._addresses[key] = (now, address)
            return address

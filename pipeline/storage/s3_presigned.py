"""Range reads of S3 objects through presigned addresses: one signature serves many reads of an object.

boto3 builds, signs and parses every request anew, which costs several times what the transfer of a megabyte does. This asks
for the same bytes through urllib3 under an address that boto3 signed once. It only ever helps: whatever does not go well is
None, and the caller asks boto3, which tries again, finds proxies and certificates, and names what is wrong.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import urllib3

from pipeline.storage.s3_request_counts import ANSWERS, count

VALID_S = 900
RENEW_S = 600
"""Keys that expire shorten what they signed; an address that no longer holds is refused once and signed anew."""
MAX_ADDRESSES = 10_000
MAX_REFUSALS = 3
"""In a row, after which no more is tried: a bucket's policy may forbid presigned addresses."""


class PresignedReads:
    """Reads of one bucket. Safe to use from several threads."""

    def __init__(self, client: Any, bucket: str, connect_timeout_s: float, read_timeout_s: float) -> None:
        self._client, self._bucket = client, bucket
        self._pool = urllib3.PoolManager(maxsize=64, timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s))
        self._addresses: dict[str, tuple[float, str]] = {}
        self._refusals = 0
        self._lock = threading.Lock()

    def read_range(self, key: str, headers: dict[str, str]) -> bytes | None:
        """What the headers ask of an object, a range and under a condition perhaps; None: ask in another way."""
        if self._refusals >= MAX_REFUSALS:
            return None
        try:
            address = self._address(key)
            headers = headers | {"Accept-Encoding": "identity"}
            answer = self._pool.request("GET", address, headers=headers, retries=False, redirect=False)
        except Exception:  # no keys, no network, a proxy, a certificate, a cut body: boto3 finds out which
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
        """The signed address of an object. It grants access: it must reach no log and no message."""
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

"""The list of what was purged from a data set: ingestion and indexing take none of it again, from any table or tar.

In: URLs and keys that a purge has removed, to record; a row's URL, to look up. Only hashes are stored, since no byte of a data
set may name a purged sample. A file of `takedowns/` that is deleted allows its URLs again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from pipeline.storage.base import Storage

FOLDER = "takedowns/"
REASON = "removed"
MESSAGE = "this URL was purged from the data set (jobs/curate.py --purge); a purge is for good"


def digest_of(name: str) -> str:
    """The hash of a URL or key, without white space around it."""
    return hashlib.sha256(name.strip().encode("utf-8", "replace")).hexdigest()


def record_purge(storage: Storage, names: Iterable[str]) -> None:
    """Adds URLs and keys to the list."""
    new = sorted({digest_of(name) for name in names if name.strip()} - read_purged(storage))
    if new:
        data = "".join(f"{digest}\n" for digest in new).encode()
        storage.write_if_absent(f"{FOLDER}{hashlib.sha256(data).hexdigest()[:16]}.txt", data)


def read_purged(storage: Storage) -> frozenset[str]:
    """The hashes of all URLs and keys on the list."""
    return frozenset(line for item in storage.list(FOLDER) for line in storage.read(item.path).decode().split())


def is_purged(url: str, purged: Collection[str]) -> bool:
    """True for a URL on the list."""
    return bool(purged) and bool(url) and digest_of(url) in purged

"""Byte ranges of object storage, kept on a node's own disk for later epochs.

In: a name and a function that fetches its bytes. Out: the bytes, from the folder if it has them. The ranks of a node, and other
runs, share a folder: an entry is one file that appears whole, with a checksum at its end.

Every sample is read once an epoch, so the range read last is needed last: the cache keeps what came first, up to its limit, and
evicts nothing for a new entry. If it is nearly full at the start of a run, entries of shards that the run does not read are
removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4


class RangeCache:
    """A folder of byte ranges with a limit on its size."""

    def __init__(self, folder: str, limit_bytes: int, wanted: Collection[str] = ()) -> None:
        """Opens the folder, and creates it if needed.

        Args:
            wanted: first parts of the names that this run will ask for.
        """
        self.folder = Path(folder).expanduser()
        self.limit_bytes = limit_bytes
        self.hits = self.misses = self.damaged = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._usage() as usage:
            usage.bytes = self._make_room(wanted)

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """Returns the bytes of `name` from the folder; if they are missing or damaged there, fetches and keeps them."""
        path = self.folder / name
        body = _read(path)
        if body is not None:
            self.hits += 1
            return body
        self._drop_damaged(path)
        self.misses += 1
        body = fetch()
        self._keep(path, body)
        return body

    def _keep(self, path: Path, body: bytes) -> None:
        """Writes an entry if there is room. A full or failing disk costs the entry, never the run."""
        size = len(body) + _CHECKSUM_BYTES
        with contextlib.suppress(OSError), self._usage() as usage:
            if usage.bytes + size > self.limit_bytes or path.exists():
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                temporary.write_bytes(body + _checksum(body))
                temporary.replace(path)
                usage.bytes += size
            finally:
                temporary.unlink(missing_ok=True)

    def _drop_damaged(self, path: Path) -> None:
        """Removes a damaged entry, unless another rank has replaced it by a whole one meanwhile."""
        if not path.exists():
            return
        with contextlib.suppress(OSError), self._usage() as usage:
            if _read(path) is None:
                logger.warning("%s is damaged; it is fetched again", path)
                self.damaged += 1
                usage.bytes -= path.stat().st_size
                path.unlink()

    def _make_room(self, wanted: Collection[str]) -> int:
        """If over 90% is used, removes unwanted entries, oldest first, down to 50%. Returns the bytes in use."""
        entries = []
        for path in self.folder.rglob("*-*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in entries)
        if used > self.limit_bytes * 0.9:
            for _, size, path in sorted(entries):
                if path.parent.name not in wanted and used > self.limit_bytes / 2:
                    path.unlink(missing_ok=True)
                    used -= size
        return used

    @contextlib.contextmanager
    def _usage(self) -> Iterator[_Usage]:
        """Locks and yields the record of the folder's size, and stores it if it was changed."""
        with (self.folder / "usage").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed or the process is killed
            file.seek(0)
            text = file.read()
            usage = _Usage(int(text) if text.isdigit() else 0)
            before = usage.bytes
            yield usage
            if usage.bytes != before or not text:
                os.ftruncate(file.fileno(), 0)
                file.write(str(max(0, usage.bytes)))


class _Usage:
    def __init__(self, used: int) -> None:
        self.bytes = used


def _read(path: Path) -> bytes | None:
    """Returns an entry's bytes; None if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    return body if len(content) > _CHECKSUM_BYTES and _checksum(body) == checksum else None


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big")

"""One small interface over local folders and S3. Objects appear whole or not at all.

Paths are relative to the root and use `/`. Endpoint and keys of S3 come from the environment, as boto3 reads them
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). A missing object is a FileNotFoundError that names its full address; a place that
cannot be reached or used is a StorageError.
"""

from __future__ import annotations

import contextlib
import io
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing; `path` is relative to the storage's root."""

    path: str
    size_bytes: int
    modified: datetime


class Storage(ABC):
    """A root and the objects under it. Picklable."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def address(self, path: str) -> str:
        return f"{self.uri}/{path}" if path else self.uri

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""

    @abstractmethod
    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the object's end. Raises FileNotFoundError."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Puts an object, in place of an older one."""

    @abstractmethod
    def write_file(self, path: str, file: Path) -> None:
        """Puts a local file's content; large ones in parts that become visible together."""

    @abstractmethod
    def new_file(self, path: str) -> contextlib.AbstractContextManager[Path]:
        """A local file to write in the block; at the block's end it is put, without another copy where that can be."""

    @abstractmethod
    def write_if_absent(self, path: str, data: bytes) -> bool:
        """Puts an object unless there is one. Returns whether this call did; of several at once exactly one does."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of an object; None where there is none."""

    @abstractmethod
    def etag(self, path: str) -> str:
        """Changes when the object is written anew. Raises FileNotFoundError."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose path starts with `prefix`, in the order of their paths."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; one that is not there is no error."""

    @abstractmethod
    def remove_unfinished(self, before: datetime) -> tuple[str, ...]:
        """Removes what writers that were killed before a moment have left half-written; it was never visible."""

    def local_path(self, path: str) -> Path | None:
        """Where the object lies on this machine's disk; None for object storage."""
        return None

    @abstractmethod
    def open(self, path: str, buffer_bytes: int) -> io.BufferedIOBase:
        """The object as it is now, as a file of which only what is asked for is read, so much at a time.

        Raises:
            FileNotFoundError: there is none.
            ReplacedError: on S3, when it is read and is another by then. On a disk one that was renamed away stays open.
        """

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def check_writable(self) -> None:
        """Writes and removes a small object. Raises StorageError."""
        probe = f"probe-{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.delete(probe)

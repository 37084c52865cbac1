"""One small interface over local folders and S3. Writes are atomic.

Paths are relative to the root and use `/`. Endpoint and keys of S3 come from the environment, as boto3 reads them
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). A missing object is a FileNotFoundError that names its full address; a storage that
cannot be reached or used is a StorageError.
"""

from __future__ import annotations

import contextlib
import io
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pipeline.errors import StorageAwayError, StorageError

BUSY_ATTEMPTS, BUSY_PAUSE_S = 8, 0.05

Created = Literal["written", "exists", "busy"]
"""Result of one conditional write; `busy`: another write of the same object is in progress."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing.

    Attributes:
        path: relative to the storage's root.
        etag: that of `Storage.etag`; empty if the store does not list it.
    """

    path: str
    size_bytes: int
    modified: datetime
    etag: str


class Storage(ABC):
    """A root and the objects under it. Picklable."""

    single_writer: bool = False
    """The root is marked for one writer, because its store does not keep put-if-absent (put_if_absent.py)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    @abstractmethod
    def store(self) -> str:
        """Name of the server or the file system behind this storage, for messages."""

    def address(self, path: str) -> str:
        return f"{self.uri}/{path}" if path else self.uri

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Reads a whole object. Raises FileNotFoundError."""

    @abstractmethod
    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Reads `length` bytes from `start`, fewer at the object's end. Raises FileNotFoundError."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Writes an object, replacing an older one."""

    @abstractmethod
    def write_file(self, path: str, file: Path) -> None:
        """Uploads a local file; large files in parts that become visible together."""

    @abstractmethod
    def new_file(self, path: str) -> contextlib.AbstractContextManager[Path]:
        """Context with a local file to write, which becomes the object at the end; without another copy if possible."""

    @abstractmethod
    def try_create(self, path: str, data: bytes) -> Created:
        """Asks the store once to write an object unless it exists."""

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """Writes an object unless it exists. Returns True if this call wrote it; of concurrent calls exactly one does.

        With `single_writer` that holds only while no other process writes: an object that another one wrote meanwhile is
        noticed if it came last, and is lost otherwise.
        """
        if self.single_writer:
            return self._write_alone(path, data)
        for attempt in range(BUSY_ATTEMPTS):
            outcome = self.try_create(path, data)
            if outcome == "written":
                return True
            if outcome == "exists" or self.exists(path):
                return False
            time.sleep(BUSY_PAUSE_S * 2**attempt)
        raise StorageAwayError(
            f"{self.address(path)}: {self.store} said {BUSY_ATTEMPTS} times that another write of it is in progress; try again"
        )

    def _write_alone(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        self.write(path, data)
        if self.read(path) != data:
            raise StorageError(
                f"{self.address(path)}: another process wrote it at the same time, though {self.uri} is marked for a single "
                "writer; stop the other one, then run this one again"
            )
        return True

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of an object in bytes; None if it does not exist."""

    @abstractmethod
    def etag(self, path: str) -> str:
        """A tag that changes when the object is replaced. Raises FileNotFoundError."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Lists the objects whose path starts with `prefix`, sorted by path."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object, if it exists."""

    @abstractmethod
    def remove_unfinished(self, before: datetime) -> tuple[str, ...]:
        """Removes partial uploads, never visible, that writers killed before that time have left. Returns their paths."""

    def local_path(self, path: str) -> Path | None:
        """Path of the object on this machine's disk; None for object storage."""
        return None

    @abstractmethod
    def open(self, path: str, buffer_bytes: int) -> io.BufferedIOBase:
        """Opens the current object for reading and seeking; only the requested parts are fetched, `buffer_bytes` at a time.

        Raises:
            FileNotFoundError: the object does not exist.
            ReplacedError: on S3, when reading after the object was replaced. On disk, an open file stays readable.
        """

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def check_writable(self) -> None:
        """Writes and removes a small object. Raises StorageError."""
        probe = f"probe-{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.delete(probe)

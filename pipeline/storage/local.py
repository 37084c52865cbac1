"""Storage in a folder on this machine, or on a file system that all nodes mount."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StorageAwayError, StorageError
from pipeline.storage.base import Created, ObjectInfo, Storage

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Somebody may make room, so the same write may work later."""
PART_SUFFIX = ".part"
"""Suffix of files that are being written. Their names begin with a dot, and they are never listed; `table.csv.part` is."""
FOLDER_ATTEMPTS = 100


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(PART_SUFFIX)


class LocalStorage(Storage):
    """Objects are files. Each is written to a temporary file in the same folder, which is renamed or linked when complete."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder).expanduser().absolute()
        super().__init__(str(self.root))

    @property
    def store(self) -> str:
        return f"the file system of {self.root}{_mount_of(self.root)}"

    def local_path(self, path: str) -> Path:
        return self.root / path

    def read(self, path: str) -> bytes:
        return self.local_path(path).read_bytes()

    def read_range(self, path: str, start: int, length: int) -> bytes:
        file = os.open(f"{self.root}/{path}", os.O_RDONLY)
        try:
            return os.pread(file, length, start)
        finally:
            os.close(file)

    def open(self, path: str, buffer_bytes: int) -> io.BufferedIOBase:
        return self.local_path(path).open("rb")

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path) as temporary:
            _write_through(temporary, data)
            temporary.replace(self.local_path(path))

    def write_file(self, path: str, file: Path) -> None:
        with file.open("rb") as source, self.new_file(path) as temporary, temporary.open("wb") as target:
            shutil.copyfileobj(source, target)

    @contextlib.contextmanager
    def new_file(self, path: str) -> Iterator[Path]:
        with self._temporary(path) as temporary:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.local_path(path))

    def try_create(self, path: str, data: bytes) -> Created:
        target = self.local_path(path)
        with self._temporary(path) as temporary:
            _write_through(temporary, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                # NFS repeats a request whose answer was lost: the link that is there may be this one.
                return "written" if target.exists() and temporary.samefile(target) else "exists"
            return "written"

    def size(self, path: str) -> int | None:
        target = self.local_path(path)
        return target.stat().st_size if target.is_file() else None

    def etag(self, path: str) -> str:
        return _tag_of(self.local_path(path).stat())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in sorted(item for item in _paths_below(folder) if item.is_file() and not _is_unfinished(item.name)):
            relative = path.relative_to(self.root).as_posix()
            if relative.startswith(prefix):
                status = path.stat()
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                yield ObjectInfo(relative, status.st_size, modified, _tag_of(status))

    def delete(self, path: str) -> None:
        target = self.local_path(path)
        target.unlink(missing_ok=True)
        if target.parent != self.root:
            with contextlib.suppress(OSError):
                target.parent.rmdir()  # if it is empty: object storage has no empty folders either

    def remove_unfinished(self, before: datetime) -> tuple[str, ...]:
        left = [path for path in self.root.rglob(f".*{PART_SUFFIX}") if path.stat().st_mtime < before.timestamp()]
        for path in left:
            path.unlink(missing_ok=True)
        return tuple(path.relative_to(self.root).as_posix() for path in left)

    @contextlib.contextmanager
    def _temporary(self, path: str) -> Iterator[Path]:
        target = self.local_path(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PART_SUFFIX}")
        try:
            _make_file(temporary)
            yield temporary
        except OSError as error:
            if error.errno in FULL:
                raise StorageAwayError(f"{target}: cannot be written ({error.strerror})") from error
            raise StorageError(f"{target}: cannot be written ({error.strerror}); choose a writable folder") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _mount_of(folder: Path) -> str:
    """Type and mount point of a folder's file system, as ` (TYPE, mounted at POINT)`; empty where the system does not say."""
    best: tuple[int, str] = (0, "")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            point, kind = line.split(" ")[1:3]
            point = point.replace("\\040", " ")
            if folder.is_relative_to(point) and len(point) >= best[0]:
                best = (len(point), f" ({kind}, mounted at {point})")
    return best[1]


def _make_file(path: Path) -> None:
    """Creates an empty file and its folders, even while another process removes those folders as empty."""
    for attempt in range(FOLDER_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch()
        except FileNotFoundError:
            if attempt == FOLDER_ATTEMPTS - 1:
                raise
        else:
            return


def _tag_of(status: os.stat_result) -> str:
    """Both times: copies and archives may bring an older time of writing along."""
    return f"{status.st_mtime_ns}-{status.st_ctime_ns}"


def _paths_below(folder: Path) -> Iterator[Path]:
    """All that lies below a folder, of which nothing needs to be there; links are not followed.

    Raises:
        PermissionError: a folder may not be read; Path.rglob would skip it.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place, name) for name in names)


def _write_through(path: Path, data: bytes) -> None:
    """Writes and syncs to disk, so that a visible object survives a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

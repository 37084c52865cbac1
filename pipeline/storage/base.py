"""One small interface over local folders and S3. Objects appear whole or not at all.

Paths are relative to the root and use `/`. Endpoint and keys of S3 come from the environment, as boto3 reads them
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). A missing object is a FileNotFoundError that names its full address; a place that
cannot be reached or used is a StorageError.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage import s3_request_counts
from pipeline.storage.range_file import RangeFile
from pipeline.storage.s3_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, BeyondEndError, errors_of, new_client
from pipeline.storage.s3_presigned import PresignedReads
from pipeline.storage.url_credentials import has_userinfo, refusal

PART_SUFFIX = ".part"
"""Of files that are being written; they are never listed."""
BODY_ATTEMPTS = 4


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


def open_storage(uri: str) -> Storage:
    """The storage of an address: s3://bucket[/prefix], file:///path, or a local path. Touches nothing yet."""
    if has_userinfo(uri):
        raise StorageError(refusal(uri))
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStorage(rest if separator else uri)
    if scheme != "s3":
        raise StorageError(f"{uri}: {scheme}:// is no storage that is supported; use a local path or s3://bucket/prefix")
    if not rest.strip("/"):
        raise StorageError(f"{uri}: names no bucket; use s3://bucket/prefix")
    return S3Storage(uri)


class LocalStorage(Storage):
    """A folder. Writers go through a temporary file in the same folder, which is renamed or linked when it is whole."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder).expanduser().absolute()
        super().__init__(str(self.root))

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

    def write_if_absent(self, path: str, data: bytes) -> bool:
        with self._temporary(path) as temporary:
            _write_through(temporary, data)
            try:
                os.link(temporary, self.local_path(path))
            except FileExistsError:
                return False
            return True

    def size(self, path: str) -> int | None:
        target = self.local_path(path)
        return target.stat().st_size if target.is_file() else None

    def etag(self, path: str) -> str:
        return str(self.local_path(path).stat().st_mtime_ns)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in sorted(item for item in folder.rglob("*") if item.is_file() and item.suffix != PART_SUFFIX):
            relative = path.relative_to(self.root).as_posix()
            if relative.startswith(prefix):
                status = path.stat()
                yield ObjectInfo(relative, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def delete(self, path: str) -> None:
        target = self.local_path(path)
        target.unlink(missing_ok=True)
        if target.parent != self.root:
            with contextlib.suppress(OSError):
                target.parent.rmdir()  # object storage knows no empty folders, and neither should a person see any

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
            raise StorageError(f"{target}: cannot be written ({error.strerror}); choose a folder that can") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _make_file(path: Path) -> None:
    """Makes an empty file and the folders above it, though another process may be removing them as empty."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.touch()
            return


def _write_through(path: Path, data: bytes) -> None:
    """Writes and waits until the disk has it, so that what is visible survives a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class S3Storage(Storage):
    """A prefix of a bucket. Puts are atomic on S3; put-if-absent is `If-None-Match: *`."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri.rstrip("/"))
        self.bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client: Any = None
        self._presigned: PresignedReads | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "_presigned": None}

    @property
    def client(self) -> Any:
        """Made once in each process: clients cannot be pickled."""
        if self._client is None:
            self._client = new_client()
            s3_request_counts.watch(self._client)
        return self._client

    @property
    def presigned(self) -> PresignedReads:
        if self._presigned is None:
            self._presigned = PresignedReads(self.client, self.bucket, CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        return self._presigned

    def read(self, path: str) -> bytes:
        return self._get(path, {})

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self._read_range(path, {}, start, length)

    def _read_range(self, path: str, condition: dict[str, str], start: int, length: int) -> bytes:
        if length == 0:
            return b""
        wanted = {"Range": f"bytes={start}-{start + length - 1}"}
        data = self.presigned.read_range(self.prefix + path, wanted | condition)
        if data is not None:
            return data
        try:
            return self._get(path, {name.replace("-", ""): value for name, value in (wanted | condition).items()})
        except BeyondEndError:
            return b""

    def open(self, path: str, buffer_bytes: int) -> io.BufferedIOBase:
        with self._errors(path):
            head = self.client.head_object(Bucket=self.bucket, Key=self.prefix + path)
        read = functools.partial(self._read_range, path, {"If-Match": head["ETag"]})
        return io.BufferedReader(RangeFile(read, head["ContentLength"]), buffer_bytes)

    def write(self, path: str, data: bytes) -> None:
        with self._errors(path):
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + path, Body=data)

    def write_file(self, path: str, file: Path) -> None:
        with self._errors(path):
            self.client.upload_file(str(file), self.bucket, self.prefix + path)

    @contextlib.contextmanager
    def new_file(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            yield file
            self.write_file(path, file)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(path):
            while True:
                try:
                    self.client.put_object(Bucket=self.bucket, Key=self.prefix + path, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                    if status == 412:
                        return False
                    if status != 409:  # 409: another put of this key is under way; ask again
                        raise

    def size(self, path: str) -> int | None:
        try:
            with self._errors(path):
                length: int = self.client.head_object(Bucket=self.bucket, Key=self.prefix + path)["ContentLength"]
                return length
        except FileNotFoundError:
            return None

    def etag(self, path: str) -> str:
        with self._errors(path):
            tag: str = self.client.head_object(Bucket=self.bucket, Key=self.prefix + path)["ETag"]
            return tag.strip('"')

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._errors(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            for page in pages:
                for item in page["Contents"] if "Contents" in page else []:
                    yield ObjectInfo(item["Key"].removeprefix(self.prefix), item["Size"], item["LastModified"])

    def delete(self, path: str) -> None:
        with self._errors(path):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + path)

    def remove_unfinished(self, before: datetime) -> tuple[str, ...]:
        removed: tuple[str, ...] = ()
        with self._errors(""):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                for upload in page["Uploads"] if "Uploads" in page else []:
                    if upload["Initiated"] < before:
                        self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                        removed += (upload["Key"].removeprefix(self.prefix),)
        return removed

    def _get(self, path: str, options: dict[str, str]) -> bytes:
        """A body, whole. boto3 asks again for an answer that does not come, but not for a body that is cut."""
        from botocore.exceptions import BotoCoreError

        with self._errors(path):
            for attempt in range(BODY_ATTEMPTS):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path, **options)
                try:
                    body: bytes = answer["Body"].read()
                    return body
                except BotoCoreError:
                    if attempt == BODY_ATTEMPTS - 1:
                        s3_request_counts.count("failures")
                        raise
                    s3_request_counts.count("retries")
                    time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def _errors(self, path: str) -> contextlib.AbstractContextManager[None]:
        return errors_of(self.address(path))

"""Storage under a prefix of an S3 bucket."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage import s3_request_counts
from pipeline.storage.base import Created, ObjectInfo, Storage
from pipeline.storage.range_file import RangeFile
from pipeline.storage.s3_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, BeyondEndError, errors_of, new_client
from pipeline.storage.s3_presigned import PresignedReads

BODY_ATTEMPTS = 4


class S3Storage(Storage):
    """Objects under a prefix of a bucket. S3's puts are atomic; put-if-absent is `If-None-Match: *`."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri.rstrip("/"))
        self.bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client: Any = None
        self._server = ""
        self._presigned: PresignedReads | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "_presigned": None}

    @property
    def client(self) -> Any:
        """boto3's client, created once per process: clients cannot be pickled."""
        if self._client is None:
            self._client = new_client()
            self._client.meta.events.register("after-call.s3", self._note_server)
            s3_request_counts.watch(self._client)
        return self._client

    @property
    def store(self) -> str:
        server = f" (server: {self._server})" if self._server else ""
        return f"{self.client.meta.endpoint_url}{server}"

    def _note_server(self, http_response: Any, **_: Any) -> None:
        header = http_response.headers.get("server") or self._server
        self._server = "".join(filter(str.isprintable, header)).strip()[:80]

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
            return self._get(path, {name.replace("-", ""): value for name, value in (wanted | condition).items()}, start)[
                :length
            ]
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

    def try_create(self, path: str, data: bytes) -> Created:
        from botocore.exceptions import ClientError

        with self._errors(path):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + path, Body=data, IfNoneMatch="*")
                return "written"
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status in (304, 412):  # 304: earlier MinIO
                    return "exists"
                if status == 409:  # S3: another write of this key is in progress. Azure's emulator and others: it exists
                    return "busy"
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
                    path, etag = item["Key"].removeprefix(self.prefix), item["ETag"].strip('"') if "ETag" in item else ""
                    yield ObjectInfo(path, item["Size"], item["LastModified"], etag)

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

    def _get(self, path: str, options: dict[str, str], start: int = 0) -> bytes:
        """Reads a complete body, from `start` if the options say so.

        boto3 retries a request without an answer, but not one whose body is cut short.
        """
        from botocore.exceptions import BotoCoreError

        with self._errors(path):
            for attempt in range(BODY_ATTEMPTS):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path, **options)
                if start and answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
                    raise StorageError(
                        f"{self.address(path)}: {self.store} ignores ranges: it sent the whole object instead of its bytes "
                        f"from {start:,} on; use a store that keeps them"
                    )
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

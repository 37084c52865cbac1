"""Address to storage: s3://bucket[/prefix], file:///path or a local path."""

from __future__ import annotations

import os

from pipeline.errors import StorageError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3 import S3Storage
from pipeline.storage.url_credentials import has_userinfo, refusal


def open_storage(uri: str, single_writer: bool = False) -> Storage:
    """The storage at an address. Connects to nothing and creates nothing yet.

    Args:
        single_writer: its root is marked for one writer, this job (pipeline/storage/put_if_absent.py).

    Raises:
        StorageError: the address is bad.
    """
    storage = _open(uri)
    storage.single_writer = single_writer
    return storage


def real_address(address: str) -> str:
    """A file's address without `..` and links on the way, which is the same for all paths that lead to it."""
    return address if "://" in address else os.path.realpath(address)


def _open(uri: str) -> Storage:
    if has_userinfo(uri):
        raise StorageError(refusal(uri))
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStorage(rest if separator else uri)
    if scheme != "s3":
        raise StorageError(f"{uri}: {scheme}:// is not a supported storage; use a local path or s3://bucket/prefix")
    if not rest.strip("/"):
        raise StorageError(f"{uri}: names no bucket; use s3://bucket/prefix")
    return S3Storage(uri)

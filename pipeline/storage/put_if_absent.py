"""Tests the promise that exactly-once rests on, put-if-absent, before a job relies on it; and marks roots for a single writer.

In: the storage that a job will write to, and the name of its single writer, if the configuration states one. Out: nothing if
`Storage.write_if_absent` can be relied on; otherwise an error that names the store (docs/decisions/0027-put-if-absent.md).

A job calls `ensure_put_if_absent` once, in its own process, before any work; its workers test nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import ConfigError, StorageAwayError, StorageError
from pipeline.storage.base import Storage

PROBE = "_probe/put-if-absent"
"""The key that is put twice. In object storage it stays and the next run uses it again: keys of S3 may lack the permission to
delete, versioned buckets keep every deletion, and a deletion could meet another run's probe. No listing of data covers it."""
MARK = "single_writer.json"
"""The object that marks a root for a single writer: {"writer": NAME}."""
FIRST, SECOND = "first", "second"
ATTEMPTS = 3
"""Probes that may meet the end of another run's probe in a local folder, which is deleted."""
WHAT_IT_IS = "RayCLIP writes this object to test put-if-absent; it may be deleted while no job runs"


def ensure_put_if_absent(storage: Storage, writer: str, key: str, leave_mark: bool = True) -> None:
    """Makes sure that `storage.write_if_absent` keeps its promise, or that the root is marked for one writer: this job.

    Costs one read and at most three requests of the probe. With a single writer, sets `storage.single_writer` and says so on
    stderr.

    Args:
        writer: the name of the root's single writer, as configured; "" for none.
        key: the configuration key that holds it, for messages.
        leave_mark: mark a new root; False for a check that only reports.

    Raises:
        StorageError: the storage breaks the promise, or cannot be written at all.
        ConfigError: root and configuration name different writers, or no writer is needed.
    """
    marked = read_mark(storage)
    if marked is None:
        problem = find_problem(storage)
        if not problem and not writer:
            return
        if not problem:
            raise ConfigError(
                f"{key}={writer}: {storage.store} keeps put-if-absent, so any job may write to {storage.uri}; remove the key"
            )
        if not writer:
            raise StorageError(
                f"{storage.uri}: {storage.store} does not keep put-if-absent: {problem}. Versions would be lost in silence; "
                f"use another store, or, if one job alone writes there, name it: {key}=NAME"
            )
        if leave_mark:
            _mark(storage, writer, key)
    elif marked != writer:
        said = f"this job says {key}={writer}" if writer else f"{key} is not set"
        raise ConfigError(
            f"{storage.uri}: is marked for a single writer, {marked} ({MARK}), and {said}; write to it with that job alone. "
            f"If this is that job, set {key}={marked}"
        )
    else:
        storage.write(PROBE, _content(FIRST, uuid.uuid4().hex))  # refused here rather than after the work
        _tidy(storage)
    storage.single_writer = True
    print(
        f"{storage.uri}: single writer {writer}: {storage.store} is not trusted with put-if-absent. Nothing keeps two runs "
        f"from losing each other's work: never start a second one. ({key}, {MARK})",
        file=sys.stderr,
        flush=True,
    )


def find_problem(storage: Storage) -> str:
    """Puts one key twice and reads it back. Returns the rule that the storage breaks; "" if it breaks none.

    Raises:
        StorageError: the storage cannot be written or read at all.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return _find_problem(storage)
    return "it refused to write an object that was not there"


def _find_problem(storage: Storage) -> str:
    name = uuid.uuid4().hex
    first, second = _content(FIRST, name), _content(SECOND, name)
    try:
        made = storage.try_create(PROBE, first) == "written"
    except StorageAwayError:
        raise
    except StorageError as error:
        storage.write(PROBE, first)  # raises where keys, bucket or folder are at fault rather than the condition
        _tidy(storage, broken=True)
        return f"it refused the condition ({_reason(error)})"
    found = b"" if made else storage.read(PROBE)
    if made or found == first:  # else an object of an earlier run was there, and was refused to be written over
        try:
            outcome = storage.try_create(PROBE, second)
        except StorageAwayError as error:
            raise StorageAwayError(f"{error}. A store that always answers a second put so is of no use") from error
        except StorageError as error:
            _tidy(storage, broken=True)
            return f"it answered the second put of a key with {_reason(error)} instead of 412"
        if outcome == "written":
            _tidy(storage, broken=True)
            return "it wrote over an object that was there"
        found = storage.read(PROBE)
        if found != first:
            _tidy(storage, broken=True)
            return "it refused the second put of a key, but the first content is gone"
        if made:
            _tidy(storage)
    if found.startswith(SECOND.encode()):
        return f"an earlier test could write over its object; delete {storage.address(PROBE)} to test again"
    return ""


def _content(which: str, name: str) -> bytes:
    return f"{which} {name}\n{WHAT_IT_IS}\n".encode()


def _tidy(storage: Storage, broken: bool = False) -> None:
    """Removes the probe from a local folder, and from a store that failed: some refuse an old object but not a new one."""
    if broken or storage.local_path("") is not None:
        with contextlib.suppress(StorageError, OSError):
            storage.delete(PROBE)


def _reason(error: StorageError) -> str:
    """The storage's own words: a status and code of S3, or an error of the operating system."""
    cause: Any = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    answer = getattr(cause, "response", None)
    if not isinstance(answer, dict):
        return str(error)
    status, code = answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]
    return f"HTTP {status}" if str(status) == code else f"HTTP {status} {code}"


def read_mark(storage: Storage) -> str | None:
    """The name of the root's single writer; None if it is not marked. Raises StorageError for a mark that cannot be read."""
    try:
        data = storage.read(MARK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        writer = json.loads(data)["writer"]
    except (ValueError, KeyError, TypeError):
        writer = None
    if not isinstance(writer, str) or not writer:
        raise StorageError(
            f'{storage.address(MARK)}: marks a single writer but does not name it; write {{"writer": "NAME"}} into it, or '
            "delete it if several jobs write here"
        )
    return writer


def _mark(storage: Storage, writer: str, key: str) -> None:
    """Marks a root that holds nothing yet. Raises ConfigError for another one: other jobs may write to it."""
    there = [item.path for item in storage.list("") if item.path not in (PROBE, MARK)]
    if there:
        raise ConfigError(
            f"{key}={writer}: {storage.uri} holds objects already ({there[0]}), and other jobs may write to it. If none does, "
            f'mark it yourself: write {{"writer": {json.dumps(writer)}}} to {storage.address(MARK)}'
        )
    content = {"writer": writer, "marked": datetime.now(UTC).isoformat(timespec="seconds")}
    storage.write(MARK, json.dumps(content).encode())
    if (now := read_mark(storage)) != writer:
        raise ConfigError(f"{key}={writer}: {storage.uri} was marked for {now} at the same moment; choose another root")

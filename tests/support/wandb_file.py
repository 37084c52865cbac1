"""Reads W&B's offline files: a LevelDB log of protobufs.

W&B has no public reader. The log has blocks of 32 KiB (github.com/google/leveldb/blob/main/doc/log_format.md), the first of
which starts with a 7-byte header of W&B's; the messages are parsed with the package's own protobuf classes.
"""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, FILE_HEADER = 32 * 1024, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows of a file, each with its `_step`, up to where a kill cut the file."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in _records(path, "history")
    ]


def artifacts_of(path: Path, timeout_s: float = 20.0) -> list[dict[str, Any]]:
    """Wait for the first artifact; return type, name, aliases and metadata of each, and whether the run uses it."""
    deadline = time.monotonic() + timeout_s
    while not (found := [record.artifact for record in _records(path, "artifact")]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [
        {"type": one.type, "name": one.name, "aliases": sorted(one.aliases), "used": one.use_after_commit, "digest": one.digest}
        | {"metadata": json.loads(one.metadata)}
        for one in found
    ]


def history_of(path: Path, count: int, timeout_s: float = 20.0) -> list[dict[str, Any]]:
    """Wait for `count` logged rows and return them: W&B's own process writes the last ones after `finish` has returned."""
    deadline = time.monotonic() + timeout_s
    while len(history(path)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return history(path)


def _records(path: Path, kind: str) -> Iterator[Any]:
    for message in messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        if record.WhichOneof("record_type") == kind:
            yield record


def messages(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, parts = FILE_HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, place)
        body = data[place + HEADER : place + HEADER + length]
        if kind == 0 or len(body) < length:
            return
        place += HEADER + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts

"""Rows to one shard: a WebDataset tar of the successes, a parquet sidecar of all rows, and img2dataset's statistics.

The tar's bytes depend on the samples alone: members in key order, times and owners fixed. The sidecar says where in the tar
every member's data lies, so that a reader can fetch any sample with one range read.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.image import Picture
from pipeline.manifest import ShardRecord
from pipeline.types import Failure

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("jpg_offset", pa.int64()),
        ("jpg_size", pa.int64()),
        ("txt_offset", pa.int64()),
        ("txt_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
    ]
)
"""docs/decisions/0001-manifest.md, in the order of the file; the input's other columns follow."""


@dataclass(frozen=True)
class Row:
    """One input row and what became of it; `extra` holds the input's other columns."""

    key: str
    url: str
    caption: str
    outcome: Picture | Failure
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return self.outcome.reason if isinstance(self.outcome, Failure) else "success"


def write_shard(rows: list[Row], name_prefix: str, image_format: str, started: datetime, folder: Path) -> ShardRecord:
    """Writes the three files of a shard into a folder, under their final names. Rows come in key order.

    Args:
        name_prefix: `{partition}-{n:03d}`; the tar's hash completes the name.
        started: when the work on these rows began; for the statistics.
    """
    tar = folder / "shard.tar"
    samples = [row for row in rows if isinstance(row.outcome, Picture)]
    metadata = {row.key: _metadata(row) for row in rows}
    _write_tar(tar, samples, metadata, image_format)
    digest = _sha256(tar)
    name = f"{name_prefix}-{digest[:12]}"
    offsets = _member_offsets(tar, image_format)
    sidecar = folder / f"{name}.parquet"
    pq.write_table(_sidecar(rows, metadata, offsets), sidecar, compression="zstd")
    (folder / f"{name}_stats.json").write_text(json.dumps(_statistics(rows, started), indent=1))
    size = tar.stat().st_size
    if samples:
        tar.rename(folder / f"{name}.tar")
    else:
        tar.unlink()
    return ShardRecord(
        name=name,
        num_rows=len(rows),
        num_samples=len(samples),
        tar_size_bytes=size if samples else 0,
        tar_sha256=digest if samples else "",
        sidecar_size_bytes=sidecar.stat().st_size,
        sidecar_sha256=_sha256(sidecar),
    )


def _metadata(row: Row) -> dict[str, Any]:
    """The row's columns but the offsets; for a sample also the content of its json member, as img2dataset writes it."""
    picture = row.outcome if isinstance(row.outcome, Picture) else None
    failure = row.outcome if isinstance(row.outcome, Failure) else None
    own = {
        "key": row.key,
        "url": row.url,
        "caption": row.caption,
        "status": failure.status if failure else "success",
        "reason": row.reason,
        "error_message": failure.message if failure else None,
        "width": picture.width if picture else None,
        "height": picture.height if picture else None,
        "original_width": picture.original_width if picture else None,
        "original_height": picture.original_height if picture else None,
        "exif": picture.exif if picture else None,
        "sha256": hashlib.sha256(picture.data).hexdigest() if picture else None,
    }
    taken = set(COLUMNS.names)
    extra = {f"source_{name}" if name in taken else name: value for name, value in row.extra.items()}
    return own | extra


def _write_tar(path: Path, samples: list[Row], metadata: dict[str, dict[str, Any]], image_format: str) -> None:
    import webdataset  # here: it imports torch where there is one, and the driver has no use for it

    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
        for row in samples:
            assert isinstance(row.outcome, Picture)
            tar.write(
                {
                    "__key__": row.key,
                    image_format: row.outcome.data,
                    "json": json.dumps(metadata[row.key], default=str).encode(),
                    "txt": row.caption.encode(),
                }
            )


def _member_offsets(tar: Path, image_format: str) -> dict[str, dict[str, int]]:
    """key -> column -> value: where each member's data begins, and its length."""
    offsets: dict[str, dict[str, int]] = {}
    with tarfile.open(tar) as file:
        for member in file:
            key, _, extension = member.name.partition(".")
            column = "jpg" if extension == image_format else extension
            place = {f"{column}_offset": member.offset_data, f"{column}_size": member.size}
            offsets.setdefault(key, {}).update(place)
    return offsets


def _sidecar(rows: list[Row], metadata: dict[str, dict[str, Any]], offsets: dict[str, dict[str, int]]) -> pa.Table:
    nothing: dict[str, int] = {}
    records = [metadata[row.key] | (offsets[row.key] if row.key in offsets else nothing) for row in rows]
    columns = {name: pa.array([record.get(name) for record in records], kind) for name, kind in zip(*_typed(), strict=True)}
    for name in dict.fromkeys(name for record in records for name in record):
        if name not in columns:
            columns[name] = pa.array([record.get(name) for record in records])
    return pa.table(columns)


def _typed() -> tuple[list[str], list[pa.DataType]]:
    return COLUMNS.names, COLUMNS.types


def _statistics(rows: list[Row], started: datetime) -> dict[str, Any]:
    """img2dataset's keys; rows that our own rules dropped count under their reason in status_dict."""
    ended = datetime.now(started.tzinfo)
    failures = [row.outcome for row in rows if isinstance(row.outcome, Failure)]
    statuses = Counter(failure.status for failure in failures)
    return {
        "count": len(rows),
        "successes": len(rows) - len(failures),
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "dropped": statuses["dropped"],
        "duration": (ended - started).total_seconds(),
        "start_time": started.timestamp(),
        "end_time": ended.timestamp(),
        "status_dict": dict(Counter(row.reason for row in rows)),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

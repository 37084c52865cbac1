"""Rows to one shard: a WebDataset tar of the successes, a parquet sidecar of all rows, and img2dataset's statistics.

The tar's bytes depend on the samples alone: members in key order, times and owners fixed. The sidecar holds the byte offset of
every member's data, so that a reader can fetch any sample with one range read.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.dataset.columns import COLUMNS, ExtraRow, ExtraRows, write_sidecar
from pipeline.dataset.manifest import ShardRecord
from pipeline.errors import Failure
from pipeline.storage.base import Storage

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class StoredImage:
    """An encoded image, ready to be written into a shard.

    Attributes:
        original_width, original_height: before resizing, upright.
        exif: JSON of the tags that are text or numbers.
        original_sha256: of the fetched bytes, for comparison with published lists of hashes.
    """

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str
    original_sha256: str = ""


@dataclass(frozen=True)
class Row:
    """One input row and its outcome.

    Attributes:
        caption: text, or the texts of a table with several captions for each image.
        extra: the input's other columns; None: there are none.
    """

    key: str
    url: str
    caption: str | list[str]
    outcome: StoredImage | Failure
    extra: ExtraRow | None = None

    @property
    def reason(self) -> str:
        return self.outcome.reason if isinstance(self.outcome, Failure) else "success"


class ShardWriter:
    """Writes one shard, row by row in key order. Keeps the rows' metadata in memory, but no images."""

    def __init__(self, name_prefix: str, image_format: str, started: datetime, folder: Path) -> None:
        """
        Args:
            name_prefix: `{partition}-{n:03d}`; the hashes of tar and sidecar complete the name.
            started: when the work on these rows began; for the statistics.
            folder: where the three files are written; `close` gives them their final names.
        """
        self.tar_size_bytes = 0
        self.num_rows = 0
        self._name_prefix, self._format, self._started, self._folder = name_prefix, image_format, started, folder
        self._records: list[dict[str, Any]] = []
        self._extra = ExtraRows()
        self._failures: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._path = folder / f"{name_prefix}.tar.part"
        self._file = self._path.open("wb")

    def add(self, row: Row) -> None:
        """Writes a row: a success into tar and sidecar, any other row into the sidecar only."""
        record = _metadata(row)
        members = {}
        if isinstance(row.outcome, StoredImage):
            metadata = record if row.extra is None else record | row.extra.json_record()
            first = row.caption[0] if isinstance(row.caption, list) else row.caption
            members = {self._format: row.outcome.data, "json": json.dumps(metadata).encode(), "txt": first.encode()}
            if isinstance(row.caption, list):
                record |= dict.fromkeys(("txt_offset", "txt_size"))  # training then reads all captions from the sidecar
        self.add_record(record, members, row.extra)

    def add_record(self, record: dict[str, Any], members: dict[str, bytes], extra: ExtraRow | None = None) -> None:
        """Writes a sidecar row and its sample's members by extension; no members if the row is not a sample.

        Args:
            record: the row's own columns; an offset that is None stays None: readers take the captions from elsewhere.
            extra: its other columns.
        """
        untracked = {name for name, value in record.items() if value is None}
        self.num_rows += 1
        self._reasons[record["reason"]] += 1
        if record["status"] != "success":
            self._failures[record["status"]] += 1
        places = self._write_sample(record["key"], members)
        self._records.append(record | {name: place for name, place in places.items() if name not in untracked})
        self._extra.add(extra)

    def close(self) -> ShardRecord:
        """Completes the three files and returns their record for the manifest; a shard without a success has no tar."""
        num_samples = self.num_rows - self._failures.total()
        self._write(bytes(-(self.tar_size_bytes + 1024) % tarfile.RECORDSIZE + 1024))  # two empty blocks, then to a full record
        self._file.close()
        part = self._folder / f"{self._name_prefix}.parquet.part"
        write_sidecar(sidecar_table(self._records, self._extra.table()), part)
        digest, sidecar_digest = self._digest.hexdigest(), hashlib.sha256(part.read_bytes()).hexdigest()
        name = f"{self._name_prefix}-{digest[:12]}-{sidecar_digest[:8]}"
        sidecar = part.rename(self._folder / f"{name}.parquet")
        (self._folder / f"{name}_stats.json").write_text(json.dumps(self._statistics(), indent=1))
        if num_samples:
            self._path.rename(self._folder / f"{name}.tar")
        else:
            self._path.unlink()
        return ShardRecord(
            name=name,
            num_rows=self.num_rows,
            num_samples=num_samples,
            tar_size_bytes=self.tar_size_bytes if num_samples else 0,
            tar_sha256=digest if num_samples else "",
            sidecar_size_bytes=sidecar.stat().st_size,
            sidecar_sha256=sidecar_digest,
        )

    def _write_sample(self, key: str, members: dict[str, bytes]) -> dict[str, int]:
        """Writes the sample's members, sorted by extension as every reader expects; returns their offsets and sizes."""
        places: dict[str, int] = {}
        for extension, data in sorted(members.items()):
            self._write(_member_header(f"{key}.{extension}", len(data)))
            places |= member_place(extension, self.tar_size_bytes, len(data))
            self._write(data)
            self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return places

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.tar_size_bytes += len(data)

    def _statistics(self) -> dict[str, Any]:
        """Statistics under img2dataset's keys; dropped rows count under their reason in status_dict."""
        ended = datetime.now(self._started.tzinfo)
        return {
            "count": self.num_rows,
            "successes": self.num_rows - self._failures.total(),
            "failed_to_download": self._failures["failed_to_download"],
            "failed_to_resize": self._failures["failed_to_resize"],
            "dropped": self._failures["dropped"],
            "duration": (ended - self._started).total_seconds(),
            "start_time": self._started.timestamp(),
            "end_time": ended.timestamp(),
            "status_dict": dict(self._reasons),
        }


def member_place(extension: str, offset: int, size: int) -> dict[str, int]:
    """The sidecar's columns for a member's data in the tar; empty for members that the sidecar does not track."""
    column = "jpg" if extension in IMAGE_EXTENSIONS else extension
    return {f"{column}_offset": offset, f"{column}_size": size} if column in ("jpg", "json", "txt") else {}


def _member_header(name: str, size_bytes: int) -> bytes:
    """A ustar header without time and owner, so that equal samples make equal tars.

    tarfile takes 15 us per header, three times per sample; so it makes a template once, and name, size and checksum are filled
    in here.
    """
    if len(name) > 100 or not name.isascii():  # not one of our names: from a foreign tar that is rewritten
        member = tarfile.TarInfo(name)
        member.size, member.mode = size_bytes, 0o444
        return member.tobuf(tarfile.PAX_FORMAT)
    own = name.encode("ascii").ljust(100, b"\0")
    size = b"%011o\0" % size_bytes
    checksum = b"%06o\0 " % (sum(own) + sum(size) + _TEMPLATE_SUM)
    return b"".join((own, _TEMPLATE[100:124], size, _TEMPLATE[136:148], checksum, _TEMPLATE[156:]))


def _template() -> bytes:
    member = tarfile.TarInfo("")
    member.mode = 0o444
    return member.tobuf(tarfile.USTAR_FORMAT)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE[100:124]) + sum(_TEMPLATE[136:148]) + 8 * ord(" ") + sum(_TEMPLATE[156:])


def write_shard(rows: Iterable[Row], name_prefix: str, image_format: str, started: datetime, folder: Path) -> ShardRecord:
    """Writes a shard from rows that are all known in advance."""
    writer = ShardWriter(name_prefix, image_format, started, folder)
    for row in rows:
        writer.add(row)
    return writer.close()


def publish(writer: ShardWriter, storage: Storage, folder: Path) -> ShardRecord:
    """Closes a shard and uploads tar, sidecar and statistics in this order: a sidecar that exists implies its tar."""
    shard = writer.close()
    for path in (shard.tar_path, shard.sidecar_path, shard.stats_path):
        file = folder / Path(path).name
        if file.exists():
            storage.write_file(path, file)
            file.unlink()
    return shard


def _metadata(row: Row) -> dict[str, Any]:
    """The row's columns except the offsets; for a sample also the content of its json member, as in img2dataset."""
    image = row.outcome if isinstance(row.outcome, StoredImage) else None
    failure = row.outcome if isinstance(row.outcome, Failure) else None
    return {
        "key": row.key,
        "url": row.url,
        "caption": row.caption,
        "status": failure.status if failure else "success",
        "reason": row.reason,
        "error_message": failure.message if failure else None,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "original_width": image.original_width if image else None,
        "original_height": image.original_height if image else None,
        "exif": image.exif if image else None,
        "sha256": hashlib.sha256(image.data).hexdigest() if image else None,
        "original_sha256": image.original_sha256 if image else None,
    }


def sidecar_table(records: list[dict[str, Any]], extra: pa.Table | None = None) -> pa.Table:
    """A sidecar's table: the fixed columns first, then the input's other columns.

    Args:
        records: the rows; columns that are not fixed get the type of their values.
        extra: further columns.
    """
    types: dict[str, pa.DataType] = dict(zip(COLUMNS.names, COLUMNS.types, strict=True))
    if any(isinstance(record["caption"], list) for record in records):
        types["caption"] = pa.list_(pa.string())
        records = [record | {"caption": _listed(record["caption"])} for record in records]
    names = dict.fromkeys([*types, *(name for record in records for name in record)])
    columns = {name: [record[name] if name in record else None for record in records] for name in names}
    table = pa.table({name: _column(values, types[name] if name in types else None) for name, values in columns.items()})
    if extra is not None:
        for field in extra.schema:
            table = table.append_column(field, extra.column(field.name))
    return table


def _listed(caption: str | list[str] | None) -> list[str]:
    """A caption as several."""
    return caption if isinstance(caption, list) else [caption] if caption else []


def types_to_try(values: list[Any]) -> tuple[pa.DataType | None, ...]:
    """Types for a column: the one that Arrow finds; for integers alone also uint64, which would cut fractions off.

    None if only some values are true or false: after a fraction, Arrow takes these for 1.0 and 0.0.
    """
    kinds = {type(value) for value in values if value is not None}
    if bool in kinds and len(kinds) > 1:
        return ()
    return (None, pa.uint64()) if kinds <= {int} else (None,)


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """A column of one type; values without a common type, or beyond every type, become JSON text."""
    if kind is not None:
        return pa.array(values, kind)
    for wanted in types_to_try(values):
        try:
            return pa.array(values, wanted)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            continue
    if all(value is None or isinstance(value, str) for value in values):  # JSON has halves of surrogate pairs, UTF-8 has not
        return pa.array([None if value is None else value.encode("utf-8", "replace").decode() for value in values])
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values])

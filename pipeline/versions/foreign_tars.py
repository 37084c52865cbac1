"""Indexes WebDataset tars written by other tools (img2dataset, LAION, any): each is read once, and none is copied.

In: a tar's address. Out: a sidecar in the data set, with the offset of every member, and a partition record whose shard names
the tar's address. Training reads the tar there, by range, like our own.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import IndexConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord, short_hash
from pipeline.dataset.shard import COLUMNS, IMAGE_EXTENSIONS, member_place, sidecar_table
from pipeline.errors import InputError
from pipeline.ingest.tables import list_files
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.versions.rewrite import READ_BYTES, member_content, split_key

SUFFIXES = (".tar",)
FINGERPRINT = "indexed"


def plan_index(config: IndexConfig, manifest: Manifest | None) -> list[str]:
    """Addresses of the tars that the data set does not hold yet. Raises InputError if the input has no tars."""
    if not config.output:
        raise InputError("index.output: is empty; name the folder or the s3://bucket/prefix of the data set")
    held = {record.input_path for record in manifest.partitions} if manifest else set()
    return [tar for tar in list_files(config.input, SUFFIXES, "index.input") if tar not in held]


def index_tar(address: str, config: IndexConfig) -> PartitionRecord:
    """Reads a tar once, and writes its sidecar into the data set.

    Raises:
        InputError: it is not a tar, or it is truncated.
    """
    storage = open_storage(config.output)
    folder, _, name = address.rpartition("/")
    stream = _HashedStream(open_storage(folder), name)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=READ_BYTES) as tar:
            files = ((*split_key(member.name), member) for member in tar if member.isfile())
            rows = [
                _row(key, {extension: (member, member_content(tar, member)) for _, extension, member in group}, config)
                for key, group in groupby(files, key=lambda item: item[0])
            ]
        stream.read_rest()
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"index.input={address}: is not a complete tar ({error}); restore it or remove it") from None
    partition = short_hash([address, stream.size_bytes, stream.sha256])
    counts = Counter(row["reason"] for row in rows)
    shard = _put_sidecar(storage, rows, f"{partition}-000-{stream.sha256[:12]}")
    return PartitionRecord(
        id=partition,
        input_path=address,
        first_row=0,
        num_rows=len(rows),
        rows_sha256=stream.sha256,
        options_fingerprint=FINGERPRINT,
        counts=dict(sorted(counts.items())),
        shards=(
            shard.model_copy(
                update={
                    "num_samples": counts["success"],
                    "tar_size_bytes": stream.size_bytes,
                    "tar_sha256": stream.sha256,
                    "address": address,
                }
            ),
        ),
    )


def _put_sidecar(storage: Storage, rows: list[dict[str, Any]], prefix: str) -> ShardRecord:
    with tempfile.TemporaryDirectory(prefix="rayclip-") as folder:
        file = Path(folder) / "sidecar.parquet"
        pq.write_table(sidecar_table(rows), file, compression="zstd")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shard = ShardRecord(
            name=f"{prefix}-{digest[:8]}",
            num_rows=len(rows),
            num_samples=0,
            tar_size_bytes=0,
            tar_sha256="",
            sidecar_size_bytes=file.stat().st_size,
            sidecar_sha256=digest,
        )
        storage.write_file(shard.sidecar_path, file)
        return shard


def _row(key: str, members: dict[str, tuple[tarfile.TarInfo, bytes]], config: IndexConfig) -> dict[str, Any]:
    """The sidecar row of a tar's members with one key."""
    record: dict[str, Any] = dict.fromkeys(COLUMNS.names) | {"key": key, "url": "", "caption": ""}
    metadata = _metadata(members)
    own = {name: value for name, value in metadata.items() if name in COLUMNS.names and name not in ("key", "status")}
    record |= {name: value for name, value in own.items() if _fits(name, value)}
    record |= {
        name: value for name, value in metadata.items() if name not in COLUMNS.names and isinstance(value, str | int | float)
    }
    for extension, (member, content) in members.items():
        record |= member_place(extension, member.offset_data, len(content))
    caption = _caption(members, metadata, config)
    image = next((members[extension][1] for extension in IMAGE_EXTENSIONS if extension in members), None)
    if config.caption_key or "txt" not in members:
        record |= {"txt_offset": None, "txt_size": None}  # training then reads the caption from the sidecar
    record["caption"] = caption
    return record | _judged(image, caption)


def _judged(image: bytes | None, caption: str) -> dict[str, Any]:
    """Columns with the row's status, and its image's size and hash if it is a sample."""
    if image is None:
        return {"status": "dropped", "reason": "no_image", "error_message": "no jpg, png or webp has this key"}
    if not caption.strip():
        return {"status": "dropped", "reason": "empty_caption", "error_message": "the caption is empty"}
    try:
        width, height = Image.open(io.BytesIO(image)).size
    except Exception as error:  # decoders raise anything on broken data
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return {"status": "failed_to_resize", "reason": "not_an_image", "error_message": message}
    digest = hashlib.sha256(image).hexdigest()
    return {"status": "success", "reason": "success", "width": width, "height": height, "sha256": digest}


def _metadata(members: dict[str, tuple[tarfile.TarInfo, bytes]]) -> dict[str, Any]:
    try:
        content = json.loads(members["json"][1]) if "json" in members else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _caption(members: dict[str, tuple[tarfile.TarInfo, bytes]], metadata: dict[str, Any], config: IndexConfig) -> str:
    if not config.caption_key and "txt" in members:
        return members["txt"][1].decode("utf-8", "replace")
    key = config.caption_key or "caption"
    return str(metadata[key]) if key in metadata and metadata[key] is not None else ""


def _fits(name: str, value: object) -> bool:
    """True if a value of the json has the type of our column."""
    text = str(COLUMNS.field(name).type) == "string"
    return isinstance(value, str) if text else isinstance(value, int) and 0 <= value < 2**31


class _HashedStream(io.RawIOBase):
    """Reads an object from start to end in ranges, and hashes it on the way."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.size_bytes = 0
        self._storage, self._path, self._digest = storage, path, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        data = self._storage.read_range(self._path, self.size_bytes, READ_BYTES if count < 0 else count)
        self.size_bytes += len(data)
        self._digest.update(data)
        return data

    def read_rest(self) -> None:
        while self.read():
            pass

"""Ingests tables that hold their images, without a network and without Ray, and reads back what was stored."""

import io
import json
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import ImageConfig, IngestConfig
from pipeline.dataset.manifest import Manifest, commit, list_versions, read_manifest, read_sidecar
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage


@cache
def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Stored:
    """A data set and the configuration that made it."""

    config: IngestConfig
    storage: Storage
    manifest: Manifest

    @property
    def sidecar(self) -> pa.Table:
        """The rows of the only shard."""
        (shard,) = self.manifest.shards
        return read_sidecar(self.storage, shard)

    def members(self, extension: str) -> list[bytes]:
        """The members with an extension, in the order of the samples."""
        found = []
        for shard in self.manifest.shards:
            with tarfile.open(fileobj=io.BytesIO(self.storage.read(shard.tar_path))) as tar:
                files = {member.name: tar.extractfile(member) for member in tar}
                found += [file.read() for name, file in files.items() if name.endswith(f".{extension}") and file]
        return found

    @property
    def texts(self) -> list[str]:
        return [data.decode() for data in self.members("txt")]

    @property
    def json_records(self) -> list[dict[str, Any]]:
        """The json members; a file that is not JSON by the standard is an error."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return [json.loads(data, parse_constant=refuse) for data in self.members("json")]


def write_table(table: pa.Table, path: Path) -> Path:
    """Writes a table with the columns that it lacks: images, and captions."""
    if "caption" not in table.column_names:
        table = table.append_column("caption", pa.array([f"row {number}" for number in range(table.num_rows)]))
    if "image" not in table.column_names:
        table = table.append_column("image", pa.array([picture()] * table.num_rows))
    pq.write_table(table, path)
    return path


def ingest(path: Path | str, output: Path, **options: Any) -> Stored:
    """Ingests a table, a folder or a glob, and commits it."""
    image = ImageConfig(size_px=8, format="png", quality=1)
    config = IngestConfig(input=str(path), output=str(output), **({"bytes_column": "image", "image": image} | options))
    storage = open_storage(config.output)
    plan = plan_ingest(config)
    records = [ingest_partition(spec, config) for spec in plan.partitions]
    manifest = commit(storage, records) if records or not list_versions(storage) else read_manifest(storage)
    return Stored(config, storage, manifest)


def store(table: pa.Table, folder: Path, **options: Any) -> Stored:
    """Ingests an Arrow table by way of a parquet file."""
    return ingest(write_table(table, folder / "table.parquet"), folder / "out", **options)

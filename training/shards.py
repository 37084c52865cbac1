"""Samples by their place in a data set: sidecars say where a sample's bytes lie, range reads fetch neighbours together.

In: a manifest and (shard, first, stop). Out: undecoded samples. A shard that is missing, short or not the manifest's is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.manifest import Manifest, ManifestError, read_sidecar
from pipeline.storage import Storage

_PLACES = ("jpg_offset", "jpg_size", "txt_offset", "txt_size")


@dataclass(frozen=True)
class RawSample:
    """One pair as it is stored: the encoded picture and the caption."""

    key: str
    image: bytes
    caption: str


@dataclass(frozen=True)
class _ShardIndex:
    """Where the samples of one shard lie in its tar; arrays have one entry a sample, in the tar's order."""

    keys: list[str]
    jpg_offset: NDArray[np.int64]
    jpg_size: NDArray[np.int64]
    txt_offset: NDArray[np.int64]
    txt_size: NDArray[np.int64]


class ShardReader:
    """Reads runs of neighbouring samples of a data set version."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.storage = storage
        self.manifest = manifest
        self._index: Callable[[int], _ShardIndex] = lru_cache(maxsize=256)(self._read_index)

    def read(self, shard: int, first: int, stop: int) -> list[RawSample]:
        """Samples [first, stop) of a shard, with one range read.

        Raises:
            ManifestError: the shard is missing, short, or not the one that the manifest names.
        """
        index, record = self._index(shard), self.manifest.shards[shard]
        begin = int(min(index.jpg_offset[first], index.txt_offset[first]))
        last, address = stop - 1, self.storage.address(record.tar_path)
        end = int(max(index.jpg_offset[last] + index.jpg_size[last], index.txt_offset[last] + index.txt_size[last]))
        try:
            data = self.storage.read_range(record.tar_path, begin, end - begin)
        except FileNotFoundError:
            raise ManifestError(f"{address}: the manifest names this shard and it is gone; restore it") from None
        if len(data) != end - begin:
            raise ManifestError(
                f"{address}: ends at byte {begin + len(data)} of {record.tar_size_bytes}; the shard was cut, restore it"
            )

        def member(offset: NDArray[np.int64], size: NDArray[np.int64], at: int) -> bytes:
            start = int(offset[at]) - begin
            return data[start : start + int(size[at])]

        return [
            RawSample(
                key=index.keys[at],
                image=member(index.jpg_offset, index.jpg_size, at),
                caption=member(index.txt_offset, index.txt_size, at).decode("utf-8", "replace"),
            )
            for at in range(first, stop)
        ]

    def columns(self, shard: int, names: Sequence[str]) -> pa.Table:
        """Sidecar columns of a shard's samples, in the tar's order. Raises ManifestError for a column that is not there."""
        record = self.manifest.shards[shard]
        table = read_sidecar(self.storage, record)
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise ManifestError(
                f"column {missing[0]}: {self.storage.address(record.sidecar_path)} has {', '.join(table.column_names)}; "
                "name one of them"
            )
        return table.filter(pc.equal(table["status"], "success")).select(list(names))

    def mean_sample_bytes(self) -> float:
        """Of the tars, headers and padding included."""
        total = sum(shard.tar_size_bytes for shard in self.manifest.shards)
        return total / max(1, self.manifest.num_samples)

    def _read_index(self, shard: int) -> _ShardIndex:
        record = self.manifest.shards[shard]
        table = read_sidecar(self.storage, record, ["key", "status", *_PLACES])
        table = table.filter(pc.equal(table["status"], "success"))
        if table.num_rows != record.num_samples:
            raise ManifestError(
                f"{self.storage.address(record.sidecar_path)}: holds {table.num_rows} samples, and the manifest says "
                f"{record.num_samples}; restore the sidecar"
            )
        places: dict[str, Any] = {name: table[name].to_numpy() for name in _PLACES}
        return _ShardIndex(keys=table["key"].to_pylist(), **places)

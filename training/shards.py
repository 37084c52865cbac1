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
from numpy.typing import NDArray

from pipeline.manifest import Manifest, ManifestError, locate_tar, read_samples, read_sidecar
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
    captions: list[str] | None
    jpg_offset: NDArray[np.int64]
    jpg_size: NDArray[np.int64]
    txt_offset: NDArray[np.int64]
    txt_size: NDArray[np.int64]

    def span(self, first: int, stop: int) -> tuple[int, int]:
        """[begin, end) in the tar of what samples [first, stop) need."""
        run = slice(first, stop)
        begin, end = int(self.jpg_offset[run].min()), int((self.jpg_offset[run] + self.jpg_size[run]).max())
        if self.captions is None:
            begin = min(begin, int(self.txt_offset[run].min()))
            end = max(end, int((self.txt_offset[run] + self.txt_size[run]).max()))
        return begin, end


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
        begin, end = index.span(first, stop)
        storage, path = locate_tar(self.storage, record)
        try:
            data = storage.read_range(path, begin, end - begin)
        except FileNotFoundError:
            raise ManifestError(f"{storage.address(path)}: the manifest names this shard and it is gone; restore it") from None
        if len(data) != end - begin:
            raise ManifestError(
                f"{storage.address(path)}: ends at byte {begin + len(data)} of {record.tar_size_bytes}; the shard was cut, "
                "restore it"
            )

        def member(offset: NDArray[np.int64], size: NDArray[np.int64], at: int) -> bytes:
            start = int(offset[at]) - begin
            return data[start : start + int(size[at])]

        def caption(at: int) -> str:
            if index.captions is not None:
                return index.captions[at]
            return member(index.txt_offset, index.txt_size, at).decode("utf-8", "replace")

        return [
            RawSample(index.keys[at], member(index.jpg_offset, index.jpg_size, at), caption(at)) for at in range(first, stop)
        ]

    def columns(self, shard: int, names: Sequence[str]) -> pa.Table:
        """Sidecar columns of a shard's samples, in the tar's order. Raises ManifestError for a column that is not there."""
        record = self.manifest.shards[shard]
        there = read_sidecar(self.storage, record)
        missing = [name for name in names if name not in there.column_names]
        if missing:
            raise ManifestError(
                f"column {missing[0]}: {self.storage.address(record.sidecar_path)} has {', '.join(there.column_names)}; "
                "name one of them"
            )
        return read_samples(self.storage, record, names)

    def mean_sample_bytes(self) -> float:
        """Of the tars, headers and padding included."""
        total = sum(shard.tar_size_bytes for shard in self.manifest.shards)
        return total / max(1, self.manifest.num_samples)

    def _read_index(self, shard: int) -> _ShardIndex:
        record = self.manifest.shards[shard]
        table = read_samples(self.storage, record, ["key", "caption", *_PLACES])
        held_elsewhere = table["txt_offset"].null_count > 0  # tars that others wrote may keep captions in their json
        places: dict[str, Any] = {name: table[name].fill_null(0).to_numpy() for name in _PLACES}
        captions = table["caption"].to_pylist() if held_elsewhere else None
        return _ShardIndex(keys=table["key"].to_pylist(), captions=captions, **places)

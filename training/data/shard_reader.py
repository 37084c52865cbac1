"""Samples by their position in a shard: sidecars hold byte offsets, range reads fetch neighbours together.

In: a manifest, a shard, and positions in it. Out: undecoded samples, each with the sha256 that ingestion recorded, and
`Damage` for each sample that is missing or cut.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.columns import holds_captions
from pipeline.dataset.json_members import caption_texts, parse_member
from pipeline.dataset.json_values import is_list
from pipeline.dataset.manifest import Manifest, ManifestError, ShardRecord, locate_tar, read_samples, read_sidecar
from pipeline.storage.base import Storage
from training.data.range_cache import RangeCache

INDEX_BYTES = 256 << 20
"""Memory for the shard indices that one reader keeps."""
GAP_BYTES = 256 << 10
"""Samples with a smaller gap between them are read at once."""
IN_JSON = "json."
"""Prefix of a place of captions in the json members."""
_MEMBERS = ("jpg", "txt", "json")
_HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class RawSample:
    """One stored pair.

    Attributes:
        image: the encoded image.
        captions: one or more to choose from; none if the reader was opened without captions.
        sha256: the first bytes of the image's sha256 as ingestion recorded it; empty if it did not.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    sha256: bytes = b""

    @property
    def caption(self) -> str:
        return self.captions[0]


CHANGED = "the image does not match the sha256 in its sidecar; the shard was changed, restore it"
CAPTION_CHANGED = "the caption is not the one in its sidecar; the shard was changed, restore it"


def is_changed(image: bytes | memoryview, sha256: bytes) -> bool:
    """Returns whether an image differs from the one that was stored."""
    return sha256 != hashlib.sha256(image).digest()[: len(sha256)]


@dataclass(frozen=True, slots=True)
class Damage:
    """A sample that is missing or not as the manifest describes it. `problem` names the sample."""

    problem: str


@dataclass(frozen=True)
class _ShardIndex:
    """Byte offsets of the samples of one shard in its tar; one entry a sample, in the tar's order.

    Attributes:
        prefix, keys: a key is the shard's common prefix plus its own rest, to save memory.
        offset, size: by member, for the members that are read.
        hashes: the first bytes of the stored images' sha256; None if the sidecar has none.
        captions: Python's hashes of the captions in the tar, if these are read: images have a sha256, captions have none.
        columns: captions that are not in the tar, by name.
    """

    prefix: bytes
    keys: NDArray[np.bytes_]
    offset: dict[str, NDArray[np.int64]]
    size: dict[str, NDArray[np.uint32]]
    hashes: NDArray[np.void] | None
    captions: NDArray[np.int64]
    columns: dict[str, pa.ChunkedArray]

    @property
    def num_bytes(self) -> int:
        arrays = [self.keys, self.captions, *self.offset.values(), *self.size.values()]
        return sum(array.nbytes for array in arrays) + sum(column.nbytes for column in self.columns.values())

    def key(self, position: int) -> str:
        return (self.prefix + self.keys[position]).decode()

    def span(self, position: int) -> tuple[int, int]:
        """Returns [begin, end) in the tar of all members of a sample."""
        begin = min(int(self.offset[member][position]) for member in self.offset)
        return begin, max(int(self.offset[member][position]) + int(self.size[member][position]) for member in self.offset)


class MissingColumnError(ManifestError):
    """A shard has none of the columns that captions are read from: bad input, which data.on_damage does not skip."""


class ShardReader:
    """Reads samples of one data set version. Safe to use from several threads."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        captions: Sequence[str] = ("caption",),
        cache: RangeCache | None = None,
        captions_key: str = "data.captions",
    ) -> None:
        """Args:
        captions: names of the places that hold captions, see `DataConfig.captions`; empty: read none.
        captions_key: the configuration key that sets them, for messages.
        """
        self.storage, self.manifest, self.cache, self._captions_key = storage, manifest, cache, captions_key
        self._captions = tuple(captions)
        self._indices: OrderedDict[int, _ShardIndex] = OrderedDict()
        self._index_bytes = 0
        self._lock = threading.Lock()

    def read(self, shard: int, first: int, stop: int) -> list[RawSample]:
        """Returns samples [first, stop) of a shard, checked against their sha256.

        Raises:
            ManifestError: the shard is missing, cut, or not the one that the manifest names.
        """
        samples = []
        for sample in self.read_run(shard, range(first, stop)):
            if isinstance(sample, Damage):
                raise ManifestError(sample.problem)
            if is_changed(sample.image, sample.sha256):
                raise ManifestError(f"{self.address(shard)}: sample {sample.key}: {CHANGED}")
            samples.append(sample)
        return samples

    def read_run(self, shard: int, positions: Sequence[int], run: range | None = None) -> list[RawSample | Damage]:
        """Returns samples of a shard by their positions, ascending; the caller checks their sha256.

        Args:
            run: the neighbours that a cache keeps together, `positions` among them.

        Raises:
            StorageError: the storage fails, rather than the shard.
            MissingColumnError: the shard has none of the columns of captions.
        """
        record = self.manifest.shards[shard]
        storage, path = locate_tar(self.storage, record)
        try:
            index = self._index(shard)
            whole = run if run is not None and self.cache is not None else None
            ranges = [_join(index, whole)] if whole else list(_ranges(index, positions))
            parts = {begin: self._read_range(storage, path, begin, end, record.tar_sha256) for begin, end in ranges}
        except FileNotFoundError:
            gone = Damage(f"{storage.address(path)}: the manifest names this shard and it is gone; restore it")
            return [gone] * len(positions)
        except MissingColumnError:
            raise
        except ManifestError as error:  # from the sidecar
            return [Damage(str(error))] * len(positions)
        return [self._sample(index, parts, position, storage.address(path)) for position in positions]

    def columns(self, shard: int, names: Sequence[str]) -> pa.Table:
        """Returns sidecar columns of a shard's samples, in the tar's order. Raises ManifestError if a column is missing."""
        record = self.manifest.shards[shard]
        sidecar = read_sidecar(self.storage, record)
        missing = [name for name in names if name not in sidecar.column_names]
        if missing:
            raise ManifestError(
                f"column {missing[0]}: {self.storage.address(record.sidecar_path)} has {', '.join(sidecar.column_names)}; "
                "name one of them"
            )
        return read_samples(self.storage, record, names)

    def address(self, shard: int) -> str:
        """Returns the address of a shard's tar, for messages."""
        storage, path = locate_tar(self.storage, self.manifest.shards[shard])
        return storage.address(path)

    # ----------------------------------------------------------------------------------------------------------- insides

    def _read_range(self, storage: Storage, path: str, begin: int, end: int, tar_sha256: str) -> bytes:
        def fetch() -> bytes:
            return storage.read_range(path, begin, end - begin)

        return fetch() if self.cache is None else self.cache.get(f"{tar_sha256}/{begin}-{end}", fetch)

    def _sample(self, index: _ShardIndex, parts: dict[int, bytes], position: int, address: str) -> RawSample | Damage:
        begin = max(start for start in parts if start <= index.span(position)[0]) if len(parts) > 1 else next(iter(parts))
        data, key = parts[begin], index.key(position)

        def member(name: str) -> bytes:
            start, size = int(index.offset[name][position]) - begin, int(index.size[name][position])
            content = data[start : start + size]
            if len(content) != size:
                raise _DamagedError(f"ends at byte {begin + len(data)}, before sample {key}; the shard was cut, restore it")
            return content

        try:
            captions = self._alternatives(index, member, position, key)
            digest = index.hashes[position].tobytes() if index.hashes is not None else b""
            return RawSample(key, member("jpg"), captions, digest)
        except _DamagedError as error:
            return Damage(f"{address}: {error}")

    def _alternatives(self, index: _ShardIndex, member: Any, position: int, key: str) -> tuple[str, ...]:
        """Returns a sample's captions from all places that `data.captions` names."""
        found: list[str] = []
        for name in self._captions:
            if name in index.columns:
                value = index.columns[name][position].as_py()
            elif name.startswith(IN_JSON):
                value = _json_value(member("json"), name.removeprefix(IN_JSON), key)
            elif name == "caption":
                value = member("txt").decode("utf-8", "replace")
                if hash(value) != index.captions[position]:
                    raise _DamagedError(f"sample {key}: {CAPTION_CHANGED}")
            else:
                continue  # a column that this shard lacks: of several, those that exist are used
            texts = caption_texts(value)
            if texts is None:
                raise _DamagedError(
                    f"sample {key} has no caption in {name}, which holds more than texts and numbers; correct it, or name "
                    f"another place in {self._captions_key}"
                )
            found += texts
        captions = tuple(found)
        if not captions and self._captions:
            places = ", ".join(self._captions)
            raise _DamagedError(f"sample {key} has no caption in {places}; name another place in {self._captions_key}")
        return captions

    def _index(self, shard: int) -> _ShardIndex:
        with self._lock:
            if shard in self._indices:
                self._indices.move_to_end(shard)
                return self._indices[shard]
        index = self._read_index(shard)
        with self._lock:
            if shard not in self._indices:
                self._indices[shard] = index
                self._index_bytes += index.num_bytes
            while self._index_bytes > INDEX_BYTES and len(self._indices) > 1:
                self._index_bytes -= self._indices.popitem(last=False)[1].num_bytes
        return index

    def _read_index(self, shard: int) -> _ShardIndex:
        record = self.manifest.shards[shard]
        wanted = [name for name in self._captions if name != "caption" and not name.startswith(IN_JSON)]
        places = [f"{member}_{what}" for member in _MEMBERS for what in ("offset", "size")]
        table = read_samples(self.storage, record, ["key", "sha256", "caption", *places], wanted)
        columns = {name: table[name] for name in wanted if name in table.column_names and holds_captions(table[name].type)}
        if not columns and wanted and len(wanted) == len(self._captions):
            raise self._missing_column(record, wanted[0])
        members = ["jpg", *(["json"] if any(name.startswith(IN_JSON) for name in self._captions) else [])]
        if "caption" in self._captions:
            if table["txt_offset"].null_count or is_list(table["caption"].type):  # others' tars may keep captions in their json
                columns["caption"] = table["caption"]
            else:
                members.append("txt")
        captions = table["caption"].to_pylist() if "txt" in members else []
        keys = [key.encode() for key in table["key"].to_pylist()]
        prefix = _common_prefix(min(keys), max(keys))
        hashes = [bytes.fromhex(text)[:_HASH_BYTES] for text in table["sha256"].to_pylist() if text]
        return _ShardIndex(
            prefix=prefix,
            keys=np.array([key[len(prefix) :] for key in keys], dtype=np.bytes_),
            # A missing member counts as an empty one at the image's offset.
            offset={name: pc.coalesce(table[f"{name}_offset"], table["jpg_offset"]).to_numpy() for name in members},
            size={name: table[f"{name}_size"].fill_null(0).to_numpy().astype(np.uint32) for name in members},
            hashes=np.array(hashes, dtype=f"V{_HASH_BYTES}") if len(hashes) == len(keys) else None,
            captions=np.array([hash(text or "") for text in captions], np.int64),
            columns=columns,
        )

    def _missing_column(self, record: ShardRecord, name: str) -> MissingColumnError:
        held = ", ".join(read_sidecar(self.storage, record).column_names)
        return MissingColumnError(
            f"column {name}: {self.storage.address(record.sidecar_path)} has {held}; name one of them in "
            f"{self._captions_key}: of several, those that a shard has are used"
        )


class _DamagedError(Exception):
    """One sample is not as the manifest describes it."""


def _common_prefix(first: bytes, last: bytes) -> bytes:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return first[: len(list(same))]


def _ranges(index: _ShardIndex, positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields [begin, end) of each read that the samples need, neighbours together."""
    begin, end = index.span(positions[0])
    for position in positions[1:]:
        first, stop = index.span(position)
        if first > end + GAP_BYTES:
            yield begin, end
            begin = first
        end = max(end, stop)
    yield begin, end


def _join(index: _ShardIndex, positions: range) -> tuple[int, int]:
    """Returns [begin, end) of all samples from the first to the last."""
    return index.span(positions[0])[0], index.span(positions[-1])[1]


def _json_value(content: bytes, name: str, key: str) -> Any:
    """Returns the value of a sample's json member under a name; None if it has none. Raises _DamagedError."""
    found = parse_member(content)
    if found is None:
        return None
    if name in found.repeated:
        raise _DamagedError(f"sample {key} holds {name} twice in its json member, with values that differ; remove one")
    return found.values.get(name)

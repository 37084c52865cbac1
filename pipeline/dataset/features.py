"""Image and text features of a data set, as jobs/embed.py stores them (docs/decisions/0011-embedding.md).

One parquet file per shard holds features and CLIP scores; a record names the model. In: a shard's features, to write; a shard
and the keys of its samples, to look up their scores. Out: files that are written atomically. Features are numpy arrays, so
that torch is not imported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.dataset.manifest import Manifest, Record, ShardRecord, first_problem, read_selection, selection_path
from pipeline.errors import InputError
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet

RECORD, FOLDER = "embedding.json", "features"
SCORE, IMAGE_FEATURES = "clip_score", "image_features"
READ_BYTES = 1 << 16
"""Smallest read: keys and scores are a small part of a file."""
_IDENTITY = ("model.name", "model.weights_sha256", "model.activation", "model.image_size_px", "data.uri")
_SETTINGS = ("captions", "precision", "dtype", "embed_dim")


class EmbeddingModel(Record):
    """The model that computed the features.

    Attributes:
        address: where its weights came from; for people.
        weights_sha256: over names, shapes and values of its state dict; independent of the file format.
    """

    address: str
    name: str
    activation: str
    image_size_px: int
    weights_sha256: str


class EmbeddedData(Record):
    """The data set version that was last embedded completely."""

    uri: str
    version: int
    identity: str


class Embedding(Record):
    """The record of an output.

    Attributes:
        captions: sources of captions, as in `data.captions`; the first caption of each sample was embedded.
        files: paths of the version's files, in the order of its shards; empty until the first run finishes.
    """

    format: Literal["rayclip-embedding"] = "rayclip-embedding"
    format_version: Literal[1] = 1
    model: EmbeddingModel
    data: EmbeddedData
    captions: tuple[str, ...]
    precision: str
    dtype: Literal["float16", "float32"]
    embed_dim: int
    files: tuple[str, ...] = ()


def read_embedding(storage: Storage) -> Embedding:
    """Reads the record of an output. Raises InputError if it is missing or unreadable."""
    try:
        return Embedding.model_validate_json(storage.read(RECORD))
    except FileNotFoundError:
        raise InputError(f"{storage.uri}: holds no features; make them with jobs/embed.py embed.output={storage.uri}") from None
    except ValidationError as error:
        raise InputError(
            f"{storage.address(RECORD)}: is not a record that this program can read ({first_problem(error)}); restore the file "
            "or choose another embed.output"
        ) from None


def claim_output(storage: Storage, wanted: Embedding) -> None:
    """Writes the record if there is none yet, so that one output holds the features of one model.

    Raises:
        InputError: the output belongs to another model, data set or setting.
    """
    storage.write_if_absent(RECORD, wanted.model_dump_json(indent=1).encode())
    found = read_embedding(storage)
    for path in (*_IDENTITY, *_SETTINGS):
        old, new = _value(found, path), _value(wanted, path)
        if old != new:
            raise InputError(
                f"embed.output={storage.uri}: holds features with {path}={old} (of {found.model.address}), but this run has "
                f"{path}={new} (of {wanted.model.address}): one output holds one kind of features; choose another embed.output"
            )


def finish_output(storage: Storage, embedding: Embedding, manifest: Manifest) -> None:
    """Lists the version's files in the record, once all of them are written.

    Raises:
        InputError: a file is missing.
    """
    held = names_held(storage)
    files = {shard.name: file_of(shard, held) for shard in manifest.shards if shard.num_samples}
    gone = [name for name, file in files.items() if file is None]
    if gone:
        raise InputError(f"{storage.address(feature_path(gone[0]))}: was written and is gone; run the job again")
    done = embedding.model_copy(update={"files": tuple(feature_path(str(file)) for file in files.values())})
    if read_embedding(storage) != done:
        storage.write(RECORD, done.model_dump_json(indent=1).encode())


def _value(record: Any, path: str) -> Any:
    for name in path.split("."):
        record = getattr(record, name)
    return record


# -------------------------------------------------------------------------------------------------------- a shard's features


def feature_name(shard: ShardRecord) -> str:
    """Stem of the file with the features of a shard's samples in this version."""
    return shard.name if shard.selection is None else shard.selection.name


def feature_path(name: str) -> str:
    return f"{FOLDER}/{name}.parquet"


def names_held(storage: Storage) -> set[str]:
    """Stems of all feature files in the output."""
    names = (item.path.rpartition("/")[2] for item in storage.list(f"{FOLDER}/"))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def file_of(shard: ShardRecord, held: Collection[str]) -> str | None:
    """Stem of a file with all of a shard's samples: this version's, or the whole tar's; None if there is none."""
    return next((name for name in (feature_name(shard), shard.name) if name in held), None)


def write_features(
    storage: Storage,
    shard: ShardRecord,
    keys: Sequence[str],
    urls: Sequence[str | None],
    features: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    damaged: Collection[int],
    dtype: str,
) -> None:
    """Writes a shard's file: key, url, image_features, text_features, clip_score; damaged samples have key and url alone.

    Args:
        features: of the images (N, E), of the captions (N, E), and their cosine similarities (N,).
        damaged: indices of samples that could not be decoded.
    """
    bad = np.zeros(len(keys), dtype=bool)
    bad[list(damaged)] = True

    def column(features_NE: NDArray[np.float32]) -> pa.Array:
        flat = pa.array(features_NE.astype(dtype).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, features_NE.shape[1], mask=pa.array(bad))

    image_features_NE, text_features_NE, clip_score_N = features
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "url": pa.array(urls, pa.string()),
            IMAGE_FEATURES: column(image_features_NE),
            "text_features": column(text_features_NE),
            SCORE: pa.array(clip_score_N, mask=bad),
        }
    )
    with storage.new_file(feature_path(feature_name(shard))) as path:
        pq.write_table(table, path, compression="zstd", use_dictionary=False)


# ------------------------------------------------------------------------------------------------------- what others read


class _Stored:
    """Columns of an output of jobs/embed.py, by the samples of a data set. Picklable."""

    key: str
    """The key or option that names the output, for messages."""

    def __init__(self, storage: Storage) -> None:
        """Raises InputError if the output holds no features."""
        self.storage, self.embedding = storage, read_embedding(storage)
        self._files: dict[str, list[str]] = defaultdict(list)  # by shard: of the whole tar first, then of its selections
        for name in sorted(names_held(storage)):
            self._files[name].append(name)
            self._files[name.rpartition("-")[0]].append(name)  # a selection's name is its shard's and a hash

    def check(self, data: Storage, manifest: Manifest) -> None:
        """Checks that every shard is in the output, without reading its file.

        Raises:
            InputError: some shards are not, e.g. because samples were added after the embedding.
        """
        shards = [shard for shard in manifest.shards if shard.num_samples]
        lacking = [shard for shard in shards if not self._candidates(shard)]
        if lacking:
            held = self.embedding.data
            raise InputError(
                f"{self.key}={self.storage.uri}: has no features for {len(lacking):,} of the {len(shards):,} shards of "
                f"{data.uri} version {manifest.version} (they are of {held.uri} version {held.version}); run jobs/embed.py "
                f"embed.data={data.uri} embed.version={manifest.version} embed.output={self.storage.uri} with the same model, "
                "which embeds what is missing"
            )

    def _column(self, data: Storage, shard: ShardRecord, keys: Sequence[str], column: str) -> pa.ChunkedArray:
        """A column's values of a shard's samples, null for damaged ones. Raises InputError if one is missing.

        They are found by their places in the tar: compact shards of indexed tars may hold a key more than once.
        """
        wanted = range(len(keys)) if shard.selection is None else read_selection(data, shard.selection).to_pylist()
        for name in self._candidates(shard):
            with self.storage.open(feature_path(name), READ_BYTES) as file:
                table = read_parquet(file, ["key", column])
            places = range(table.num_rows) if name == shard.name else _selected(data, name)
            rows = {place: row for row, place in enumerate(places[: table.num_rows])}
            found = [(key, rows[place]) for key, place in zip(keys, wanted, strict=True) if place in rows]
            held = table["key"].to_pylist()
            if len(found) == len(keys) and all(held[row] == key for key, row in found):
                return table[column].take(pa.array([row for _, row in found], pa.int64()))
        raise InputError(
            f"{self.key}={self.storage.uri}: lacks samples of shard {shard.name}; it was made from another version of the data "
            "set; run jobs/embed.py with embed.version set to the version that is used here"
        )

    def _candidates(self, shard: ShardRecord) -> list[str]:
        """Files that may hold all of a shard's samples. A selection's file never holds those of the whole tar."""
        names = self._files[shard.name] if shard.name in self._files else []
        return names if shard.selection is not None else names[:1] if names[:1] == [shard.name] else []


class Scores(_Stored):
    """CLIP scores, for curating."""

    key = "curate.scores"

    def of(self, data: Storage, shard: ShardRecord, keys: Sequence[str]) -> list[float]:
        """The scores of a shard's samples, NaN for damaged ones. Raises InputError if one is missing."""
        if not keys:
            return []
        return [math.nan if score is None else score for score in self._column(data, shard, keys, SCORE).to_pylist()]


class ImageFeatures(_Stored):
    """Image features, for searching."""

    key = "--features"

    def of(self, data: Storage, shard: ShardRecord, keys: Sequence[str]) -> NDArray[np.float32]:
        """The features of a shard's samples (N, E), NaN for damaged ones. Raises InputError if one is missing."""
        result = np.full((len(keys), self.embedding.embed_dim), np.nan, np.float32)
        if keys:
            column = self._column(data, shard, keys, IMAGE_FEATURES).combine_chunks()
            result[column.is_valid().to_numpy(zero_copy_only=False)] = (
                column.flatten().to_numpy().astype(np.float32).reshape(-1, result.shape[1])
            )
        return result


def _selected(data: Storage, name: str) -> Sequence[int]:
    """Places in the tar of the samples of a selection, by its name; none if it is gone."""
    try:
        return read_parquet(data.read(selection_path(name)))["position"].to_pylist()
    except FileNotFoundError:
        return []

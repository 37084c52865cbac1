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

from pipeline.dataset.manifest import Manifest, Record, ShardRecord, first_problem
from pipeline.errors import InputError
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet

RECORD, FOLDER = "embedding.json", "features"
SCORE = "clip_score"
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
    features: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    damaged: Collection[int],
    dtype: str,
) -> None:
    """Writes a shard's file: key, image_features, text_features, clip_score; for damaged samples all but the key is null.

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
            "image_features": column(image_features_NE),
            "text_features": column(text_features_NE),
            SCORE: pa.array(clip_score_N, mask=bad),
        }
    )
    with storage.new_file(feature_path(feature_name(shard))) as path:
        pq.write_table(table, path, compression="zstd", use_dictionary=False)


# ------------------------------------------------------------------------------------------------------ scores, for curating


class Scores:
    """CLIP scores of a data set's samples, read from an output of jobs/embed.py. Picklable."""

    def __init__(self, storage: Storage) -> None:
        """Raises InputError if the output holds no features."""
        self.storage, self.embedding = storage, read_embedding(storage)
        self._files: dict[str, list[str]] = defaultdict(list)  # by shard: of the whole tar first, then of its selections
        for name in sorted(names_held(storage)):
            self._files[name].append(name)
            self._files[name.rpartition("-")[0]].append(name)  # a selection's name is its shard's and a hash

    def check(self, data: Storage, manifest: Manifest) -> None:
        """Checks that every shard has scores, without reading them.

        Raises:
            InputError: some shards have none, e.g. because samples were added after the embedding.
        """
        shards = [shard for shard in manifest.shards if shard.num_samples]
        lacking = [shard for shard in shards if not self._candidates(shard)]
        if lacking:
            held = self.embedding.data
            raise InputError(
                f"curate.scores={self.storage.uri}: has no scores for {len(lacking):,} of the {len(shards):,} shards of "
                f"{data.uri} version {manifest.version} (they are of {held.uri} version {held.version}); run jobs/embed.py "
                f"embed.data={data.uri} embed.version={manifest.version} embed.output={self.storage.uri} with the same model, "
                "which embeds what is missing"
            )

    def of(self, shard: ShardRecord, keys: Sequence[str]) -> list[float]:
        """The scores of a shard's samples, NaN for damaged ones. Raises InputError if one is missing."""
        if not keys:
            return []
        for name in self._candidates(shard):
            path = feature_path(name)
            with self.storage.open(path, READ_BYTES) as file:
                table = read_parquet(file, ["key", SCORE])
            found = dict(zip(table["key"].to_pylist(), table[SCORE].to_pylist(), strict=True))
            if all(key in found for key in keys):
                return [math.nan if found[key] is None else found[key] for key in keys]
        raise InputError(
            f"curate.scores={self.storage.uri}: lacks samples of shard {shard.name}; it was made from another version than "
            "curate.version; run jobs/embed.py with embed.version set to that version"
        )

    def _candidates(self, shard: ShardRecord) -> list[str]:
        """Files that may hold all of a shard's samples. A selection's file never holds those of the whole tar."""
        names = self._files[shard.name] if shard.name in self._files else []
        return names if shard.selection is not None else names[:1] if names[:1] == [shard.name] else []

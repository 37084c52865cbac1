"""Resolves the places of captions before a run starts: each names a column, or a value in the json members, that holds text.

In: opened data sets, and `data.captions` or `evaluation.retrieval_captions`. Out: nothing, or a ConfigError that names the data
set, what it has instead, and what to type. Only the ends of sidecars are read, and a few samples.

Rule: a place that no data set has is refused, and so is a data set with none of the places. Of several, those that a shard has
are used.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from model.tokenizer import tokenize
from pipeline.dataset.columns import COLUMNS, PREFIX, holds_captions
from pipeline.dataset.manifest import Manifest, ManifestError, ShardRecord, read_samples
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.data.shard_reader import IN_JSON, Damage, RawSample, ShardReader

ALL_UP_TO, AT_MOST = 256, 1024
"""Shards of a data set whose columns are looked at: all of them up to the first number; above, one of each table, and no more
than the second."""
SHARDS_SAMPLED, SAMPLES_EACH = 8, 8
"""Samples in which a caption is looked for: of so many shards, so many each."""
CAPTIONS_EACH = 256
"""Captions of a shard whose lengths are looked at."""
READERS = 16
BUFFER_BYTES = 64 << 10
Opened = tuple[Storage, Manifest]


def check_captions(data_sets: Sequence[Opened], places: Sequence[str], key: str) -> None:
    """Checks that each data set has captions in one of the places, and that each place is one of some data set.

    Args:
        key: the configuration key that names the places, for messages.

    Raises:
        ConfigError: a place is misspelled, a data set or one of its tables has none of them, or no sample has a caption.
        ManifestError: samples cannot be read.
    """
    data_sets = [one for one in data_sets if one[1].num_samples]  # the order of samples refuses a run without any
    found: set[str] = set()
    for storage, manifest in data_sets:
        found |= _check_data_set(storage, manifest, places, key)
    unknown = [place for place in places if place not in found]
    if unknown and data_sets:
        names = sorted({name for storage, manifest in data_sets for name in _names(storage, manifest)})
        raise ConfigError(
            f"{key}={list(places)}: no data set has {unknown[0]}{_meant(unknown[0], names)}; "
            f"remove it, or name one of {_some(names)}"
        )


def samples_without_captions(data_set: Opened, places: Sequence[str]) -> int:
    """Counts the samples of a data set of ours without a caption in any of the places, as far as its sidecars tell."""
    storage, manifest = data_set
    return sum(_without(storage, shard, tuple(places)) for shard in manifest.shards if shard.num_samples)


def caption_lengths(data_sets: Sequence[Opened], places: Sequence[str], context_length: int) -> list[int]:
    """Tokens of some captions, from the first sidecars of each data set; none where only json members have them."""
    texts: list[str] = []
    for storage, manifest in data_sets:
        for shard in [shard for shard in manifest.shards if shard.num_samples][:SHARDS_SAMPLED]:
            names = _columns(storage, shard, places)
            texts += _captions(storage, shard, names)[:CAPTIONS_EACH] if names else []
    return [int(length) for length in (tokenize(texts, context_length) != 0).sum(1)] if texts else []


def _captions(storage: Storage, shard: ShardRecord, names: Sequence[str]) -> list[str]:
    try:
        table = read_samples(storage, shard, list(names))
    except ManifestError:
        return []  # reading the samples reports it
    values = (value for name in names for value in table[name].to_pylist())
    texts = (text for value in values for text in (value if isinstance(value, list) else [value]))
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _columns(storage: Storage, shard: ShardRecord, places: Sequence[str]) -> list[str]:
    """The sidecar's columns of these places."""
    schema = _schema(storage, shard)
    columns = [] if schema is None else [_column_of(place, schema) for place in places]
    return [name for name in dict.fromkeys(columns) if name is not None]


def _check_data_set(storage: Storage, manifest: Manifest, places: Sequence[str], key: str) -> set[str]:
    """Returns the places that a data set has. Raises ConfigError if it has none, or one of its tables has none."""
    shards = _chosen(manifest)
    with ThreadPoolExecutor(READERS, "columns") as readers:
        schemas = list(readers.map(lambda shard: _schema(storage, shard), shards))
    found: set[str] = set()
    for shard, schema in zip(shards, schemas, strict=True):
        if schema is None:
            continue
        here = {place for place in places if _column_of(place, schema) is not None}
        found |= here
        if not here and not any(place.startswith(IN_JSON) for place in places):
            names = _text_columns(schema)
            odd = [f"{place} holds {schema.field(place).type}, not text" for place in places if place in schema.names]
            raise ConfigError(
                f"{key}={list(places)}: {storage.address(shard.sidecar_path)} "
                f"{'has no such column' if not odd else f'has no captions there: {odd[0]}'}"
                f"{_meant(places[0], names) if not odd else ''}; name one of {_some(names)}. "
                f"Of several ({key}=[{places[0]},{names[0]}]), those that a data set has are used"
            )
    reader = ShardReader(storage, manifest, places, captions_key=key)
    problem = _no_caption(reader)
    if problem:
        raise ConfigError(f"{key}={list(places)}: none of the samples of {storage.uri} that were tried can be used: {problem}")
    in_json = [place for place in places if place.startswith(IN_JSON) and place not in found]
    return found | {place for place in in_json if not _no_caption(ShardReader(storage, manifest, (place,)))}


def _chosen(manifest: Manifest) -> list[ShardRecord]:
    """The shards whose columns are looked at: tables have columns of their own, and shards have those of their table."""
    if len(manifest.shards) <= ALL_UP_TO:
        return [shard for shard in manifest.shards if shard.num_samples]
    of_table = {
        partition.input_path: shard for partition in manifest.partitions for shard in partition.shards if shard.num_samples
    }
    shards = list(of_table.values())
    return shards[:: -(-len(shards) // AT_MOST) or 1]


def _names(storage: Storage, manifest: Manifest) -> Iterator[str]:
    for shard in _chosen(manifest)[:SHARDS_SAMPLED]:
        schema = _schema(storage, shard)
        yield from _text_columns(schema) if schema is not None else ()


def _schema(storage: Storage, shard: ShardRecord) -> pa.Schema | None:
    """The columns of a shard's sidecar; None if it cannot be read, which `data.on_damage` decides upon."""
    return _schema_of(storage.uri, shard.sidecar_path, shard.sidecar_sha256)


@lru_cache(maxsize=1 << 14)  # a run is planned several times, and a sidecar never changes
def _schema_of(uri: str, path: str, _sha256: str) -> pa.Schema | None:
    try:
        with open_storage(uri).open(path, BUFFER_BYTES) as file:
            return pq.ParquetFile(file, pre_buffer=False).schema_arrow
    except (FileNotFoundError, pa.ArrowException):
        return None


def _column_of(place: str, schema: pa.Schema) -> str | None:
    """The sidecar column of a place of captions; None if it has none that holds text."""
    if not place.startswith(IN_JSON):
        return place if place in schema.names and holds_captions(schema.field(place).type) else None
    name = place.removeprefix(IN_JSON)
    return next(
        (one for one in (f"{PREFIX}{name}", name) if one in schema.names and holds_captions(schema.field(one).type)), None
    )


def _text_columns(schema: pa.Schema) -> list[str]:
    others = [name for name in schema.names if name not in COLUMNS.names and holds_captions(schema.field(name).type)]
    return ["caption", *others]


def _no_caption(reader: ShardReader) -> str:
    """The reason why none of a few samples, spread over the data set, can be used; empty if one can."""
    shards = [number for number, shard in enumerate(reader.manifest.shards) if shard.num_samples]
    problem = ""
    for shard in shards[:: -(-len(shards) // SHARDS_SAMPLED) or 1]:
        count = reader.manifest.shards[shard].num_samples
        positions = range(0, count, -(-count // SAMPLES_EACH))
        for position in positions:
            (sample,) = reader.read_run(shard, (position,))
            if isinstance(sample, RawSample):
                return ""
            assert isinstance(sample, Damage)
            problem = problem or sample.problem
    return problem


def _without(storage: Storage, shard: ShardRecord, places: tuple[str, ...]) -> int:
    schema = _schema(storage, shard)
    if schema is None:
        return 0
    columns = {place: _column_of(place, schema) for place in places}
    if any(columns[place] is None and place.startswith(IN_JSON) for place in places):
        return 0  # only the json members tell
    names = [name for name in dict.fromkeys(columns.values()) if name is not None]
    try:
        table = read_samples(storage, shard, names)
    except ManifestError:
        return 0  # reading the samples reports it
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    return sum(not any(map(_is_caption, row)) for row in rows)


def _is_caption(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and text.strip() for text in texts)


def _meant(place: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(place, [*names, *(f"{IN_JSON}{name}" for name in names)], 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return f"{shown}, ..." if len(names) > 10 else shown

"""A version of a data set in Python: its samples one by one, for torch, for Ray, and those that meet a condition.

In: the address of a data set that jobs/ingest.py, index.py or curate.py wrote. Out: samples, undecoded or decoded. Nothing is
written. Imports neither torch nor Ray before `to_torch` and `to_ray`.
"""

from __future__ import annotations

import copy
import difflib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.columns import captions_of
from pipeline.dataset.manifest import Manifest, ManifestError, read_manifest, read_samples
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from training.data.shard_reader import CHANGED, Damage, RawSample, ShardReader, is_changed

if TYPE_CHECKING:
    import ray.data

    from model.preprocess import AnImage
    from pipeline.versions.curation import Rules
    from rayclip.torch_pairs import TorchPairs

READ_SAMPLES = 64
"""Samples of a shard that are read at once."""
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Sample:
    """A stored pair.

    Attributes:
        key: unique in a data set that jobs/ingest.py wrote.
        url: None where a tar that was indexed does not say it.
        captions: none, one or several.
        image: the encoded image, as it is stored.
        columns: values of the columns that were asked for, by name; None where a sample has none.
    """

    key: str
    url: str | None
    captions: tuple[str, ...]
    image: bytes
    columns: dict[str, Any] = field(default_factory=dict)


class DataSet:
    """One version of a data set, or the samples of it that meet conditions. Cheap to open, and picklable."""

    def __init__(self, uri: str | os.PathLike[str], version: int | Literal["latest"] = "latest") -> None:
        """
        Args:
            uri: its root: a local folder or s3://bucket/prefix.

        Raises:
            InputError: there is no data set, or no such version.
        """
        text = os.fspath(uri)
        self._storage = open_storage(text if "://" in text else str(Path(text).expanduser().absolute()))
        self.manifest: Manifest = read_manifest(self._storage, version)
        self._rules: tuple[Rules, ...] = ()
        self._kept: dict[int, Sequence[int]] = {}

    @property
    def uri(self) -> str:
        return self._storage.uri

    @property
    def version(self) -> int:
        return self.manifest.version

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that `samples` and `filter` can use: those that ingestion adds, and the table's own."""
        of_table = {part.input_path: shard for part in self.manifest.partitions for shard in part.shards}
        found: dict[str, None] = {}
        for shard in of_table.values():
            with self._storage.open(shard.sidecar_path, READ_BYTES) as file:
                found |= dict.fromkeys(pq.read_schema(file).names)
        return tuple(found)

    def __len__(self) -> int:
        return sum(len(self.positions(number)) for number in range(len(self.manifest.shards)))

    def __repr__(self) -> str:
        conditions = "".join(f".filter({rules.config.where!r})" for rules in self._rules)
        return f"<rayclip.DataSet {self.uri} version {self.version}{conditions}>"

    def filter(self, condition: str, features: str | os.PathLike[str] = "") -> DataSet:
        """The samples that meet a condition, in the language of `curate.where`; no new version is written.

        A few sidecars are read here, to refuse a condition that cannot be evaluated; the others when their samples are needed.

        Args:
            condition: such as "width > 200 and lang == 'en'".
            features: an output of jobs/embed.py, for conditions on `clip_score`.

        Raises:
            InputError: the condition cannot be evaluated on these columns.
        """
        from pipeline.config import CurateConfig
        from pipeline.versions.curation import check_rules, read_rules

        if not condition.strip():
            raise InputError("filter: the condition is empty; give one such as 'width > 200'")
        config = CurateConfig(data=self.uri, version=self.version, where=condition, scores=os.fspath(features))
        result = copy.copy(self)
        try:
            rules = read_rules(config)
            if rules.scores is not None:
                rules.scores.check(self._storage, self.manifest)
            result._rules = (*self._rules, check_rules(self._storage, self.manifest, rules))
        except InputError as error:
            text = str(error).replace("curate.where=", "filter: ").replace("curate.scores=", "features=")
            raise InputError(text) from None
        result._kept = {}
        result.__dict__.pop("_ends", None)  # of the samples before
        return result

    def samples(self, columns: Sequence[str] = ()) -> Iterator[Sample]:
        """Yields all samples, in the order of the manifest, each checked against its sha256.

        Args:
            columns: names of `columns` to add to each sample.

        Raises:
            InputError: there is no such column, or a sample is damaged.
        """
        self._check_columns(columns)
        for number in range(len(self.manifest.shards)):
            yield from self.read(number, self.positions(number), columns)

    def to_torch(
        self,
        preprocess: Callable[[AnImage], Any] | None = None,
        tokenize: Callable[[list[str]], Any] | None = None,
        caption_column: str = "caption",
    ) -> TorchPairs:
        """A map-style torch data set of (pixels, token ids), for a DataLoader with shuffling and workers.

        Args:
            preprocess: such as `model.preprocess`; None: CLIP's, at 224 pixels.
            tokenize: such as `model.tokenize`; None: CLIP's, with 77 tokens.
            caption_column: whose text is tokenized; of several captions, the first.

        Raises:
            InputError: there is no such column.
        """
        from rayclip.torch_pairs import TorchPairs

        self._check_columns([caption_column])
        return TorchPairs(self, preprocess, tokenize, caption_column)

    def to_ray(self, columns: Sequence[str] = ()) -> ray.data.Dataset:
        """A Ray data set of rows with key, url, captions, image (bytes) and `columns`, read by the cluster's workers.

        Joins the Ray cluster of this machine or of RAY_ADDRESS, or starts one here, unless this process has joined one.

        Raises:
            InputError: there is no such column.
        """
        import ray

        from jobs.cli.command_line import connect_ray
        from training.config import ClusterConfig

        self._check_columns(columns)
        connect_ray(ClusterConfig())
        numbers = [number for number, shard in enumerate(self.manifest.shards) if shard.num_samples]
        shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=max(1, len(numbers)))
        data, names = self, tuple(columns)

        def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
            for number in batch["shard"].tolist():
                yield from data.tables(number, names)

        return shards.map_batches(read, batch_size=1)

    # ----------------------------------------------------------------------------------------------------------- by shard

    def positions(self, number: int) -> Sequence[int]:
        """Places of a shard's samples that meet all conditions, among those of the version, ascending."""
        shard = self.manifest.shards[number]
        if not self._rules or not shard.num_samples:
            return range(shard.num_samples)
        if number not in self._kept:
            from pipeline.versions.curation import judge

            verdicts = [judge(self._storage, shard, rules)[0] for rules in self._rules]
            self._kept[number] = [place for place, found in enumerate(zip(*verdicts, strict=True)) if not any(found)]
        return self._kept[number]

    def read(self, number: int, positions: Sequence[int], columns: Sequence[str] = ()) -> Iterator[Sample]:
        """Yields samples of a shard by their places. Raises InputError if one is damaged."""
        for rows, found in self._blocks(number, positions, columns):
            for row, texts, stored in zip(rows.to_pylist(), captions_of(rows["caption"]), found, strict=True):
                asked = {name: row[name] for name in columns}
                yield Sample(row["key"], row["url"], tuple(text for text in texts if text), stored.image, asked)

    def tables(self, number: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yields a shard's samples as Arrow tables, of READ_SAMPLES each, with the columns' own types."""
        for rows, found in self._blocks(number, self.positions(number), columns):
            captions = [[text for text in texts if text] for texts in captions_of(rows["caption"])]
            own = {
                "key": rows["key"],
                "url": rows["url"],
                "captions": pa.array(captions, pa.list_(pa.string())),
                "image": pa.array([stored.image for stored in found], pa.binary()),
            }
            yield pa.table(own | {name: rows[name] for name in columns if name not in own})

    def _blocks(
        self, number: int, positions: Sequence[int], columns: Sequence[str]
    ) -> Iterator[tuple[pa.Table, list[RawSample]]]:
        """Yields sidecar rows and stored samples together; a column that this shard lacks is null."""
        if not positions:
            return
        table = read_samples(self._storage, self.manifest.shards[number], ["key", "url", "caption"], columns)
        for name in columns:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows))
        for first in range(0, len(positions), READ_SAMPLES):
            run = positions[first : first + READ_SAMPLES]
            yield (
                table.take(pa.array(run, pa.int64())),
                [self._whole(number, one) for one in self._reader.read_run(number, run)],
            )

    def _whole(self, number: int, found: RawSample | Damage) -> RawSample:
        if isinstance(found, Damage):
            raise ManifestError(found.problem)
        if is_changed(found.image, found.sha256):
            raise ManifestError(f"{self._reader.address(number)}: sample {found.key}: {CHANGED}")
        return found

    def place(self, index: int) -> tuple[int, int]:
        """(shard, position in it) of a sample, by its index among those that meet all conditions."""
        number = bisect_right(self._ends, index)
        return number, self.positions(number)[index - (self._ends[number - 1] if number else 0)]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(self.positions(number)) for number in range(len(self.manifest.shards))))

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self._storage, self.manifest, captions=())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}  # it has a lock

    def _check_columns(self, names: Sequence[str]) -> None:
        if isinstance(names, str):
            raise InputError(f"columns={names!r}: is a text; give a list of names")
        for name in names:
            if name not in self.columns:
                close = difflib.get_close_matches(name, self.columns, n=1)
                meant = f"did you mean {close[0]}? " if close else ""
                raise InputError(f"column {name}: {self.uri} has no such column; {meant}It has {', '.join(self.columns)}")

"""Data of a run's report: the record of the run, in any state, and a description of its data sets.

In: the storage of a run's folder. Out: a `RunReport`, in which missing parts are empty, and whose `problems` list what could
not be read. Nothing is computed from the model.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from model.config import get_architecture
from pipeline.dataset.columns import captions_of, join_columns
from pipeline.dataset.manifest import Manifest, read_manifest, read_samples
from pipeline.errors import ConfigError, InputError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.evaluation.watched_pairs import evenly, pairs_id
from training.record.goodput import Spent, stopped_s
from training.record.run_record import RESULT, STARTS
from training.record.tracking import METRICS, PAIR_SIMILARITIES, WATCHED_PAIRS, iter_rows

CONFIG = "config.yaml"
SHARDS_READ, CAPTIONS_COUNTED, MOST_TOKENS = 8, 4000, 256
Numbers = NDArray[np.float64]
SECTIONS_OF_DATA = 4
"""Number of data sets of a mixture that are described."""


@dataclass(frozen=True)
class DataReport:
    """Description of a data set version.

    Attributes:
        failures: (reason, rows, share of all rows), the most common first.
        seen: number of samples whose sidecars were read; the arrays below describe these.
        sides_px: the shorter side of each image as fetched, or as stored if that is unknown.
        stored: sizes of the stored images, as text.
        tokens: length of each caption that was counted, with start and end token, at most MOST_TOKENS.
    """

    uri: str
    version: int
    weight: float
    num_samples: int
    num_rows: int
    num_shards: int
    size_bytes: int
    failures: list[tuple[str, int, float]]
    seen: int
    sides_px: NDArray[np.int64]
    stored: str
    tokens: NDArray[np.int64]
    context_length: int

    @property
    def cut_share(self) -> float:
        """Share of the captions that are longer than the model reads."""
        return float((self.tokens > self.context_length).mean()) if len(self.tokens) else 0.0


@dataclass(frozen=True)
class Steps:
    """The logged steps of a record, in order.

    Attributes:
        columns: numbers by key; NaN where a step lacks the key.
        last: the last row; empty if there is no step.
    """

    count: int = 0
    columns: dict[str, Numbers] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Numbers:
        return self.columns[key] if key in self.columns else np.full(self.count, np.nan)


@dataclass(frozen=True)
class RunReport:
    """Everything that is known about a run.

    Attributes:
        config_text: the stored config.yaml.
        evaluations: rows of evaluations.
        result: result.json; None for a run that has not finished.
        pairs, looks: the watched pairs, and their results at each evaluation.
    """

    name: str
    uri: str
    config_text: str
    steps: Steps
    evaluations: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    result: dict[str, Any] | None
    pairs: dict[str, Any] | None
    looks: list[dict[str, Any]]
    data: list[DataReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def total_steps(self) -> int | None:
        """Planned number of steps; None if it was not recorded."""
        known = [start["total_steps"] for start in self.starts if "total_steps" in start]
        return known[-1] if known else None

    @property
    def spent(self) -> Spent | None:
        """Time spent, up to the last row of the record."""
        if self.result is not None and self.result["spent"]:
            parts = Spent.__dataclass_fields__
            return Spent(**{key: value for key, value in self.result["spent"].items() if key in parts})
        if not self.steps.count or not self.starts:
            return None
        last, goodput = self.starts[-1], self.steps.last.get("goodput")
        trained_s, evaluation_s, checkpoint_s = (
            float(np.nansum(self.steps[key])) for key in ("train_s", "evaluation_s", "checkpoint_s")
        )
        return Spent(
            training_s=trained_s,
            evaluation_s=evaluation_s + stopped_s(last, "evaluation_s"),
            checkpoints_s=checkpoint_s + stopped_s(last, "checkpoint_s"),
            lost_s=last["lost_s"],
            start_up_s=last["start_up_s"],
            elapsed_s=trained_s / goodput if goodput else 0.0,
            starts=len(self.starts),
        )


def read_run(run: Storage, name: str) -> RunReport:
    """Reads a run's folder, whether the run is finished, running or interrupted.

    Raises:
        ConfigError: there is no such run.
        StorageError: the folder cannot be read.
    """
    files = {
        path: run.read(path) if run.exists(path) else b""
        for path in (METRICS, STARTS, PAIR_SIMILARITIES, WATCHED_PAIRS, CONFIG, RESULT)
    }
    if not files[METRICS] and not files[CONFIG]:
        raise ConfigError(f"run.name={name}: {run.uri} holds no record of a run; name a run that has started")
    problems: list[str] = []
    steps, evaluations = parse_record(files[METRICS], problems)
    texts = {path: files[path].decode("utf-8", "replace") for path in (WATCHED_PAIRS, CONFIG, RESULT)}
    starts, all_looks = (list(iter_rows(files[path], path, problems)) for path in (STARTS, PAIR_SIMILARITIES))
    pairs = _json_of(texts[WATCHED_PAIRS], WATCHED_PAIRS, problems)
    looks = [look for look in all_looks if pairs is not None and look["pairs"] == pairs_id(pairs)]
    result = _json_of(texts[RESULT], RESULT, problems)
    if result is not None and starts and "total_steps" in starts[-1] and result["step"] != starts[-1]["total_steps"]:
        result = None  # of the run before it was extended
    report = RunReport(
        name=name,
        uri=run.uri,
        config_text=texts[CONFIG],
        steps=steps,
        evaluations=evaluations,
        starts=starts,
        result=result,
        pairs=pairs,
        looks=looks,
        problems=problems,
    )
    report.data.extend(_describe_data(texts[CONFIG], problems))
    return report


def parse_record(data: bytes, problems: list[str]) -> tuple[Steps, list[dict[str, Any]]]:
    """Parses logged steps into columns, since a record may hold millions of numbers, and collects the rows of evaluations."""
    count, last, evaluations = 0, dict[str, Any](), []
    columns: dict[str, array[float]] = {}
    for row in iter_rows(data, METRICS, problems):
        if any(key.startswith("evaluation/") for key in row):
            evaluations.append(row)
        if "loss" not in row:
            continue
        for key, value in row.items():
            if isinstance(value, int | float):
                column = columns.setdefault(key, array("d"))
                column.extend(repeat(np.nan, count - len(column)))
                column.append(value)
        count, last = count + 1, row
    for column in columns.values():
        column.extend(repeat(np.nan, count - len(column)))
    return Steps(count, {key: np.frombuffer(column) for key, column in columns.items()}, last), evaluations


def _json_of(text: str, name: str, problems: list[str]) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        content: dict[str, Any] = json.loads(text)
        return content
    except ValueError as error:
        problems.append(f"{name} is incomplete: {error}")
        return None


def _describe_data(config_text: str, problems: list[str]) -> list[DataReport]:
    """Describes the data sets of a stored configuration; appends a problem for each that cannot be read."""
    found = []
    try:
        config = yaml.safe_load(config_text) or {}
        parts = config["data"]["mixture"] or [{**config["data"], "weight": 1.0}]
        context_length = get_architecture(config["model"]["name"]).context_length
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{CONFIG} does not name the data of the run ({type(error).__name__}: {error})")
        return []
    for part in parts[:SECTIONS_OF_DATA]:
        try:
            found.append(_data_report(part, context_length))
        except (InputError, OSError, pa.ArrowException, KeyError) as error:
            problems.append(f"the data set is not described: {error}")
    if len(parts) > SECTIONS_OF_DATA:
        problems.append(f"of {len(parts)} data sets of the mixture the first {SECTIONS_OF_DATA} are described")
    return found


def _data_report(part: Mapping[str, Any], context_length: int) -> DataReport:
    storage = open_storage(part["uri"])
    manifest = read_manifest(storage, part["version"])
    samples = _some_samples(storage, manifest)
    stored = samples.filter(pc.is_valid(samples["width"])) if samples.num_rows else samples
    captions = [text for texts in evenly(captions_of(samples["caption"]), CAPTIONS_COUNTED) for text in texts if text]
    return DataReport(
        uri=storage.uri,
        version=manifest.version,
        weight=part["weight"],
        num_samples=manifest.num_samples,
        num_rows=manifest.num_rows,
        num_shards=len(manifest.shards),
        size_bytes=sum(shard.tar_size_bytes for shard in manifest.shards),
        failures=_failures(manifest),
        seen=samples.num_rows,
        sides_px=_shorter_sides(samples),
        stored=_commonest_size(stored),
        tokens=_count_tokens(captions),
        context_length=context_length,
    )


def _failures(manifest: Manifest) -> list[tuple[str, int, float]]:
    """Rows without a sample in this version, by reason: failed, dropped, or excluded by a selection."""
    counts: Counter[str] = Counter()
    for partition in manifest.partitions:
        counts.update({reason: count for reason, count in partition.counts.items() if reason != "success"})
    for shard in manifest.shards:
        if shard.selection is not None:
            counts.update({f"excluded: {reason}": count for reason, count in shard.selection.drops.items()})
    return [(reason, count, count / max(1, manifest.num_rows)) for reason, count in counts.most_common()]


def _some_samples(storage: Storage, manifest: Manifest) -> pa.Table:
    """Reads the sidecars of a few shards, spread over the data set."""
    shards = evenly([shard for shard in manifest.shards if shard.num_samples], SHARDS_READ)
    columns = ["caption", "width", "height", "original_width", "original_height"]
    if not shards:
        return pa.table({name: pa.array([], pa.string() if name == "caption" else pa.int32()) for name in columns})
    tables = [read_samples(storage, shard, columns) for shard in shards]
    captions = join_columns("caption", [chunk for table in tables for chunk in table["caption"].chunks])
    sizes = pa.concat_tables([table.drop_columns("caption") for table in tables], promote_options="permissive")
    return sizes.append_column("caption", captions)


def _shorter_sides(samples: pa.Table) -> NDArray[np.int64]:
    width, height = (pc.coalesce(samples[f"original_{side}"], samples[side]) for side in ("width", "height"))
    sides = pc.min_element_wise(width, height, skip_nulls=False).drop_null()
    return np.asarray(sides.to_numpy(), dtype=np.int64)


def _commonest_size(samples: pa.Table) -> str:
    """Text with the most common size of stored images and its share."""
    if not samples.num_rows:
        return "sizes are not recorded"
    sizes = Counter(zip(samples["width"].to_pylist(), samples["height"].to_pylist(), strict=True))
    (width, height), count = sizes.most_common(1)[0]
    return f"{width} x {height} px" + ("" if len(sizes) == 1 else f" ({count / samples.num_rows:.0%}; {len(sizes):,} sizes)")


def _count_tokens(captions: Sequence[str]) -> NDArray[np.int64]:
    from model.tokenizer import token_ids

    return np.asarray(token_ids(list(captions), MOST_TOKENS).argmax(axis=1) + 1, dtype=np.int64)  # end-of-text is the largest

"""Rules that choose the samples of the next version, applied to sidecars; no image is read.

In: a shard's sidecar, a model's scores if any, and the rules. Out: a verdict for each sample ("" keeps it), and the shard's
record with its selection. Duplicates, which concern several shards, are found by jobs/curate.py, with Ray.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import CurateConfig
from pipeline.dataset.columns import COLUMNS, captions_of
from pipeline.dataset.features import SCORE, Scores
from pipeline.dataset.manifest import Manifest, Selection, ShardRecord, read_samples, read_selection, read_sidecar
from pipeline.errors import InputError
from pipeline.ingest.retry import is_own_key
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.small_text import read_named_text, split_lines
from pipeline.versions.condition_values import first_captions, to_frame
from pipeline.versions.conditions import holds, kinds_of_shards, named_columns

DUPLICATE, REMOVED = "duplicate", "removed"
_HASHES = re.compile(r"(source_)?(original_)?sha256(_\d+)?")
"""Columns of hashes: ours, and those of a table or tar, which are of the originals (img2dataset's, DataComp's)."""


@dataclass(frozen=True)
class Rules:
    """The configured rules, with the contents of the files that they name.

    Attributes:
        removed: keys and URLs of samples to take down.
        retries: keys of the same rows in other attempts (`takedown.with_retries`).
        scores: a model's scores of the samples.
        elsewhere: columns that the condition names and some shard has: null in shards that lack them.
    """

    config: CurateConfig
    excluded_hashes: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    retries: frozenset[str] = frozenset()
    scores: Scores | None = None
    elsewhere: frozenset[str] = frozenset()

    @property
    def are_empty(self) -> bool:
        config = self.config
        rest = {"data": config.data, "version": config.version, "seed": config.seed, "scores": config.scores}
        return not self.removed and config == CurateConfig(**rest)


def read_rules(config: CurateConfig, remove: str | None = None) -> Rules:
    """Reads the files that the rules name. Raises InputError for a missing or invalid file."""
    hashes = _lines(config.exclude_hashes, "curate.exclude_hashes") if config.exclude_hashes else frozenset[str]()
    for line in hashes:
        if len(line) != 64 or not set(line.lower()) <= set("0123456789abcdef"):
            raise InputError(
                f"curate.exclude_hashes={config.exclude_hashes}: {line[:80]!r} is not a sha256; write 64 hex digits per line"
            )
    removed = _lines(remove, "--remove") if remove else frozenset[str]()
    scores = Scores(open_storage(config.scores)) if config.scores else None
    return Rules(config, frozenset(line.lower() for line in hashes), removed, scores=scores)


def _lines(path: str, key: str) -> frozenset[str]:
    return frozenset(line for line in split_lines(read_named_text(key, path, may_be_empty=True)) if line)


def check_rules(storage: Storage, manifest: Manifest, rules: Rules) -> Rules:
    """Judges a shard of each kind, to refuse a condition that one of them does not allow; returns the rules for all shards.

    Raises:
        InputError: `curate.where` cannot be evaluated on the columns of some shard.
    """
    shards = [shard for shard in manifest.shards if shard.num_samples]
    if rules.config.where:
        kinds = kinds_of_shards(storage, shards, rules.config.where)
        rules = replace(rules, elsewhere=frozenset(name for kind in kinds for name, _ in kind))
        shards = list(kinds.values())
    for shard in shards if rules.config.where else shards[:1]:
        judge(storage, shard, rules)
    return rules


def judge(storage: Storage, shard: ShardRecord, rules: Rules) -> tuple[list[str], list[str]]:
    """Verdicts and sha256s of the samples that the version holds, in order.

    Raises:
        InputError: `curate.where` cannot be evaluated on these columns.
    """
    names = read_sidecar(storage, shard).column_names
    used = {*COLUMNS.names, *named_columns(names, rules.config.where)}
    wanted = [name for name in names if name in used or (rules.excluded_hashes and _HASHES.fullmatch(name))]
    table = read_samples(storage, shard, wanted)
    captions = captions_of(table["caption"])
    table = table.set_column(wanted.index("caption"), "caption", first_captions(table["caption"]))
    frame = to_frame(table, [name for name in rules.elsewhere if name not in names])
    if rules.scores is not None:
        if SCORE in names:
            raise InputError(
                f"curate.scores={rules.config.scores}: the sidecars already have a column {SCORE}, from the input table; omit "
                "curate.scores to use that one"
            )
        frame[SCORE] = rules.scores.of(storage, shard, frame["key"].tolist())
    verdicts = pd.Series("", index=frame.index)
    place = storage.address(shard.sidecar_path)
    kept = holds(frame, rules.config.where, place, [*names, *rules.elsewhere]) if rules.config.where else None
    for reason, dropped in _rules(frame, captions, kept, rules):
        verdicts[dropped & (verdicts == "")] = reason
    return verdicts.tolist(), frame["sha256"].fillna("").tolist()


def _rules(
    frame: pd.DataFrame, captions: list[list[str]], where: pd.Series | None, rules: Rules
) -> list[tuple[str, pd.Series]]:
    """(reason, mask of the samples to drop) of each rule that is set, in the order of CurateConfig.

    Args:
        captions: of each sample, which is short if none is long enough, and long if all are too long.
        where: for which samples the condition holds.
    """
    config = rules.config
    found: list[tuple[str, pd.Series]] = []
    if rules.removed:
        is_named = frame["key"].isin(rules.removed | rules.retries) | frame["url"].str.strip().isin(rules.removed)
        found.append((REMOVED, is_named))
    sides = _sides(frame)
    if config.min_side_px:
        found.append(("too_small", sides.min(axis=1) < config.min_side_px))
    if config.max_aspect_ratio is not None:
        found.append(("aspect_ratio", sides.max(axis=1) > config.max_aspect_ratio * sides.min(axis=1)))
    fewest, most = (config.min_caption_characters, config.min_caption_words), config.max_caption_characters
    if any(fewest):
        long_enough = [any(len(text) >= fewest[0] and len(text.split()) >= fewest[1] for text in texts) for texts in captions]
        found.append(("short_caption", ~pd.Series(long_enough, index=frame.index, dtype=bool)))
    if most is not None:
        too_long = [bool(texts) and all(len(text) > most for text in texts) for texts in captions]
        found.append(("long_caption", pd.Series(too_long, index=frame.index, dtype=bool)))
    if rules.excluded_hashes:
        names = [name for name in frame if _HASHES.fullmatch(name)]
        columns = [frame[name].astype(str).str.lower().isin(rules.excluded_hashes) for name in names]
        found.append(("excluded_hash", pd.concat(columns, axis=1).any(axis=1)))
    if where is not None:
        found.append(("where", ~where))
    if config.sample_share < 1:
        draws = [_draw(config.seed, *pair) for pair in zip(frame["key"], frame["sha256"], strict=True)]
        found.append(("sampled_out", pd.Series(draws, index=frame.index, dtype=float) >= config.sample_share))
    return found


def _sides(frame: pd.DataFrame) -> pd.DataFrame:
    """Width and height of the original images; of the stored ones where a tar that was indexed does not say the original's."""
    original, stored = (
        frame[[f"{which}width", f"{which}height"]].astype("float64").set_axis(["width", "height"], axis=1)
        for which in ("original_", "")
    )
    is_known = original.notna().all(axis=1)
    return pd.concat([original[is_known], stored[~is_known]]).sort_index()


def _draw(seed: int, key: str, sha256: str) -> float:
    """A pseudo-random number in [0, 1), by seed and sample: ingestion's keys are unique, and those of other tars repeat."""
    key = key if is_own_key(key) else f"{key}/{sha256}"
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def select(storage: Storage, shard: ShardRecord, verdicts: Sequence[str]) -> ShardRecord:
    """Writes a selection of the samples whose verdict is "", and returns the shard's record with it."""
    drops = Counter(verdict for verdict in verdicts if verdict)
    if not drops:
        return shard
    if shard.selection is None:
        positions, before = list(range(shard.num_samples)), Counter[str]()
    else:
        positions, before = read_selection(storage, shard.selection).to_pylist(), Counter(shard.selection.drops)
    kept = [position for position, verdict in zip(positions, verdicts, strict=True) if not verdict]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"position": pa.array(kept, pa.int32())}), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    selection = Selection(
        name=f"{shard.name}-{digest[:12]}",
        size_bytes=len(data),
        sha256=digest,
        tar_samples=shard.tar_samples,
        drops=dict(sorted((before + drops).items())),
    )
    storage.write_if_absent(selection.path, data)
    return shard.model_copy(update={"num_samples": len(kept), "selection": selection})


def note_on_new_rows(manifest: Manifest) -> str:
    """Says that rows which were added are not selected, as earlier ones of the data set were; "" if none were."""
    drops = {reason for shard in manifest.shards if shard.selection for reason in shard.selection.drops} - {REMOVED}
    if not drops:
        return ""
    return (
        f"WARNING: earlier rows were selected by jobs/curate.py ({', '.join(sorted(drops))}), and the new rows were not: a "
        "data set keeps no rules; run jobs/curate.py again before you train on them"
    )


def duplicates(rows: pd.DataFrame, key: str, order: Collection[str]) -> pd.Series:
    """Mask of the rows that are not the first with their key, in the order of some columns."""
    ordered = rows.sort_values(list(order))
    return ordered[key].duplicated().reindex(rows.index)

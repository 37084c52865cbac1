"""Rows of a data set that did not become samples: examples for people, and those that a change of settings concerns.

In: a version's sidecars. Out: lines for the terminal. Only sidecars of partitions with such rows are read, and no more of them
than the examples need; a rewritten (compact) shard is not searched.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import FetchConfig, IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, read_sidecar
from pipeline.errors import InputError
from pipeline.ingest.hints import FailedRow, hint, is_concerned, may_concern
from pipeline.ingest.outcome import Lineage, Outcome, is_retry
from pipeline.ingest.retry import RETRY_OF, partition_of, retried_keys, retried_partition
from pipeline.storage.base import Storage

EXAMPLES = 3
MOST_PARTITIONS = 64
"""Partitions whose sidecars are read for the rows that changed settings concern."""
_COLUMNS = ["key", "url", "reason", "error_message"]


@dataclass(frozen=True)
class Concerned:
    """Failed rows that a change of settings concerns, by reason; at least that many if not `all_counted`."""

    counts: dict[str, int]
    all_counted: bool

    def __str__(self) -> str:
        rows = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.items())
        return f"{'' if self.all_counted else 'at least '}{sum(self.counts.values()):,} rows that failed before ({rows})"


def advice(storage: Storage, manifest: Manifest, partitions: Iterable[str], config: IngestConfig) -> list[str]:
    """A line for each reason why rows of some partitions failed, with examples below it, the most frequent reason first.

    Args:
        partitions: their ids.
    """
    wanted = set(partitions)
    records = [record for record in manifest.partitions if record.id in wanted]
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    lines = []
    for reason, rows in _examples(storage, manifest, records, set(counts) - {"success"}).items():
        lines.append(f"{reason}: {hint(reason, rows, config.fetch)}".removesuffix(": "))
        lines += [f"  {_example(row)}" for row in rows[:EXAMPLES]]
    return lines


def _example(row: FailedRow) -> str:
    return f"{row.place}: {row.shown_url}" if row.url else row.place


def _examples(
    storage: Storage, manifest: Manifest, records: Sequence[PartitionRecord], reasons: set[str]
) -> dict[str, list[FailedRow]]:
    """Rows by reason: all those of the sidecars that are read until each reason has EXAMPLES, where there are as many."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    found: dict[str, list[FailedRow]] = {reason: [] for reason, _ in counts.most_common() if reason in reasons}
    places = _Places(manifest)
    for record in records:
        lacking = {reason for reason in found if len(found[reason]) < EXAMPLES}
        if not lacking & set(record.counts):
            continue
        for row in _failed(storage, record):
            if row["reason"] in lacking:
                found[row["reason"]].append(places.row(row))
    return found


def _failed(storage: Storage, record: PartitionRecord) -> Iterator[dict[str, Any]]:
    """Rows without a sample, of one partition; none where a takedown has deleted its sidecar."""
    for shard in record.shards:
        try:
            table = read_sidecar(storage, shard, _COLUMNS, if_there=[RETRY_OF] if is_retry(record) else [])
        except InputError:
            continue
        for row in table.to_pylist():
            if row["reason"] != "success" and partition_of(row["key"]) == record.id:
                yield row


class _Places:
    """Finds table and number of a row by its key."""

    def __init__(self, manifest: Manifest) -> None:
        self._records = {record.id: record for record in manifest.partitions}

    def row(self, row: Mapping[str, Any]) -> FailedRow:
        partition, _, number = (row.get(RETRY_OF) or row["key"]).rpartition("-")
        record = self._records.get(partition)
        if record is None or not number.isdigit():
            place = row["key"]
        elif is_retry(record):  # of a retry of a retry
            place = f"key {row.get(RETRY_OF)}"
        else:
            place = f"{record.input_path.rpartition('/')[2]} row {record.first_row + int(number) + 1}"
        return FailedRow(place, row["url"] or "", row["error_message"] or "")


def concerned_rows(
    storage: Storage, manifest: Manifest, outcomes: Sequence[Outcome], tables: set[str], config: IngestConfig
) -> Concerned:
    """Counts the tables' failed rows, not retried yet, that may have another result under the settings than they had.

    Rows that no outcome covers count only if they tell so themselves: their settings are unknown.
    """
    then = {one: _settings(outcome) for outcome in reversed(outcomes) for one in outcome.partitions}
    records = Lineage(manifest).of_tables(tables)
    retries: dict[str, list[PartitionRecord]] = defaultdict(list)
    for record in filter(is_retry, records):
        retries[retried_partition(record.input_path)].append(record)
    unknown, places = FetchConfig(), _Places(manifest)
    counts: Counter[str] = Counter()
    read = 0
    for record in records:
        before = then.get(record.id)
        reasons = {reason for reason in record.counts if may_concern(reason, config.fetch, before or unknown)}
        if before is None:
            reasons &= {"bad_url", "unknown_scheme", "address_refused", "timeout", "too_large", "too_many_redirects"}
        if not reasons or record.num_rows <= sum(one.num_rows for one in retries[record.id]):
            continue
        if read == MOST_PARTITIONS:
            return Concerned(dict(counts.most_common()), all_counted=False)
        read += 1
        counts.update(_open_failures(storage, manifest, record, retries[record.id], reasons, config.fetch, places))
    return Concerned(dict(counts.most_common()), all_counted=True)


def _open_failures(
    storage: Storage,
    manifest: Manifest,
    record: PartitionRecord,
    retries: Sequence[PartitionRecord],
    reasons: set[str],
    fetch: FetchConfig,
    places: _Places,
) -> Counter[str]:
    """Rows of a partition that failed for some reasons, were not retried, and may now have another result."""
    done = retried_keys(storage, manifest, retries)
    rows = (row for row in _failed(storage, record) if row["reason"] in reasons and row["key"] not in done)
    return Counter(row["reason"] for row in rows if is_concerned(row["reason"], places.row(row), fetch))


def _settings(outcome: Outcome) -> FetchConfig | None:
    """The settings that a run had, as far as this release knows their keys."""
    known = {name: value for name, value in outcome.fetch.items() if name in FetchConfig.model_fields}
    return FetchConfig(**known) if known else None

"""Judges whether runs of ingestion did what was meant, and keeps their outcomes in the data set.

In: the rows that runs attempted, by the manifest and by the outcomes of earlier runs. Out: None, or a message with the figures.
The rules, and why a run of nothing repeats the verdict on an earlier one: docs/decisions/0025-exit-codes.md.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord
from pipeline.ingest.retry import in_retries, retried_partition
from pipeline.storage.base import Storage

FOLDER = "outcomes"
JUDGED_ROWS = 100
"""Fewest rows whose share of successes is judged while the data set has samples, and fewest that are a history."""
MOST_OUTCOMES = 1000
"""Newest outcomes that are read."""


class Outcome(BaseModel):
    """Result of the rows that a run attempted.

    Attributes:
        tables: all tables of the run's input; of a retry, the tables that its rows come from.
        partitions: ids of the partitions that it attempted.
        history_rows, history_successes: rows that the data set held before, and how many of them became samples at once.
        fetch: the run's `ingest.fetch`.
    """

    written: datetime
    tables: list[str]
    retry: bool
    partitions: list[str]
    rows: int
    successes: int
    history_rows: int = 0
    history_successes: int = 0
    fetch: dict[str, Any] = {}


@dataclass(frozen=True)
class Held:
    """Rows of some tables that a data set holds; a row that failed and was retried counts once.

    Attributes:
        reasons: rows without a sample, by reason; empty if some were retried, since records do not say which.
        all_failed: none of them was dropped by a rule.
    """

    rows: int
    successes: int
    reasons: dict[str, int]
    all_failed: bool

    @property
    def without_sample(self) -> int:
        return self.rows - self.successes


class Ledger:
    """Keeps the outcome of the run in progress in the data set, from before its first commit, so that a kill hides nothing.

    Attributes:
        sources: tables whose rows the run attempts.
    """

    def __init__(self, storage: Storage, config: IngestConfig, tables: Sequence[str], manifest: Manifest | None) -> None:
        """
        Args:
            tables: of the run's input.
            manifest: the latest version before the run.
        """
        history = [record for record in _fetched(manifest) if not is_retry(record)]
        self.sources = Lineage(manifest).sources(tables)
        self._storage = storage
        self._records: dict[str, PartitionRecord] = {}
        now = datetime.now(UTC)
        self._path = f"{FOLDER}/{now:%Y%m%dT%H%M%S.%f}Z-{uuid.uuid4().hex[:8]}.json"
        self._outcome = Outcome(
            written=now,
            tables=sorted(self.sources),
            retry=any(map(in_retries, tables)),
            partitions=[],
            rows=0,
            successes=0,
            history_rows=sum(record.num_rows for record in history),
            history_successes=sum(record.counts.get("success", 0) for record in history),
            fetch=config.fetch.model_dump(mode="json"),
        )

    @property
    def retrying(self) -> bool:
        return self._outcome.retry

    @property
    def partitions(self) -> set[str]:
        """Ids of the partitions that the run has attempted."""
        return set(self._records)

    def add(self, records: Iterable[PartitionRecord]) -> None:
        """Adds finished partitions, and writes the outcome so far. Call it before these are committed."""
        self._records |= {record.id: record for record in records}
        self._write(self._records)

    def close(self, committed: set[str]) -> None:
        """Writes the outcome of the partitions that were committed; another run may have been first with some."""
        if self._records:
            self._write({name: record for name, record in self._records.items() if name in committed})

    def _write(self, records: dict[str, PartitionRecord]) -> None:
        figures = {
            "partitions": sorted(records),
            "rows": sum(record.num_rows for record in records.values()),
            "successes": sum(record.counts.get("success", 0) for record in records.values()),
        }
        outcome = self._outcome.model_copy(update=figures)
        self._storage.write(self._path, outcome.model_dump_json(indent=1).encode())


def read_outcomes(storage: Storage) -> list[Outcome]:
    """The outcomes of a data set's runs, newest first."""
    paths = sorted((item.path for item in storage.list(f"{FOLDER}/") if item.path.endswith(".json")), reverse=True)
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda path: Outcome.model_validate_json(storage.read(path)), paths[:MOST_OUTCOMES]))


class Lineage:
    """Tells from which table a record's rows come, through any number of retries."""

    def __init__(self, manifest: Manifest | None) -> None:
        self._records = {record.id: record for record in manifest.partitions} if manifest else {}

    def source(self, record: PartitionRecord) -> PartitionRecord:
        """The record of the partition whose rows were retried; the record itself if it is of no retry."""
        while is_retry(record) and (before := self._records.get(retried_partition(record.input_path))) is not None:
            record = before
        return record

    def sources(self, tables: Iterable[str]) -> set[str]:
        """The tables that the rows of these tables come from."""
        return {self.source_of(table) for table in tables}

    def source_of(self, table: str) -> str:
        """The table itself; of retries, the one that their rows come from."""
        before = self._records.get(retried_partition(table)) if in_retries(table) else None
        return table if before is None else self.source(before).input_path

    def of_tables(self, tables: set[str]) -> list[PartitionRecord]:
        """All records whose rows come from these tables, retries included."""
        return [record for record in self._records.values() if self.source(record).input_path in tables]


def is_retry(record: PartitionRecord) -> bool:
    return in_retries(record.input_path)


def _fetched(manifest: Manifest | None) -> list[PartitionRecord]:
    """Records of ingestion; tars that were indexed in place are no attempts."""
    partitions = manifest.partitions if manifest else ()
    return [record for record in partitions if not any(shard.address for shard in record.shards)]


def count_held(manifest: Manifest, tables: set[str], dropped: frozenset[str]) -> Held:
    """Counts the rows of tables that a data set holds.

    Args:
        dropped: reasons of rows that a rule dropped.
    """
    records = Lineage(manifest).of_tables(tables)
    reasons: Counter[str] = Counter()
    for record in records:
        reasons.update(record.counts)
    successes = reasons.pop("success", 0)
    rows = sum(record.num_rows for record in records if not is_retry(record))
    retried = any(map(is_retry, records))
    return Held(rows, successes, {} if retried else dict(reasons.most_common()), not dropped & set(reasons))


def standing_shortfall(
    manifest: Manifest, outcomes: Sequence[Outcome], tables: set[str], config: IngestConfig, retrying: bool, attempted: bool
) -> str | None:
    """The message about the newest run over some of these tables that missed what was meant, unless rows succeeded since.

    A retry that missed it neither clears the run before it nor speaks for the tables' next runs, but for the next retry.

    Args:
        outcomes: newest first; of the run that ends now too.
        tables: of the run that ends now; of a retry, the tables that its rows come from.
        retrying: the run that ends now is a retry.
        attempted: the run that ends now attempted rows, so that the newest outcome is its own.
    """
    has_samples = manifest.num_samples > 0
    for number, outcome in enumerate(one for one in outcomes if tables & set(one.tables)):
        found = shortfall(outcome, config, has_samples)
        if found is not None and (retrying or not outcome.retry):
            return found if attempted and number == 0 else f"{_when(outcome)}: {found}"
        if found is None and outcome.successes:
            return None
    return shortfall(_before_outcomes(manifest, outcomes, tables), config, has_samples)


def shortfall(outcome: Outcome, config: IngestConfig, has_samples: bool) -> str | None:
    """Figures and rule if too few rows of a run became samples; None if enough did, or if there were too few rows to judge."""
    if not outcome.rows or (outcome.rows < JUDGED_ROWS and has_samples):
        return None
    share = outcome.successes / outcome.rows
    figures = f"{outcome.successes:,} of {outcome.rows:,} rows became samples ({share:.2%})"
    if share < config.min_success_share:
        return f"{figures}: less than ingest.min_success_share={config.min_success_share:g}"
    if outcome.retry or outcome.history_rows < JUDGED_ROWS:
        return None
    before = outcome.history_successes / outcome.history_rows
    if share < config.min_share_of_history * before:
        return (
            f"{figures}: less than ingest.min_share_of_history={config.min_share_of_history:g} of the {before:.2%} of the "
            f"{outcome.history_rows:,} rows before them"
        )
    return None


def _before_outcomes(manifest: Manifest, outcomes: Sequence[Outcome], tables: set[str]) -> Outcome:
    """The tables' rows that no outcome covers, as if one run had attempted them: earlier releases kept no outcomes."""
    covered = {partition for outcome in outcomes for partition in outcome.partitions}
    records = [record for record in Lineage(manifest).of_tables(tables) if record.id not in covered]
    return Outcome(
        written=manifest.created,
        tables=sorted(tables),
        retry=False,
        partitions=[record.id for record in records],
        rows=sum(record.num_rows for record in records if not is_retry(record)),
        successes=sum(record.counts.get("success", 0) for record in records),
    )


def _when(outcome: Outcome) -> str:
    return f"in the run of {outcome.written:%Y-%m-%d %H:%M} UTC, and no row has succeeded since"

"""The verdict on a run's rows: its floor, its history, and how later runs repeat it."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord, commit
from pipeline.ingest.options import options_fingerprint
from pipeline.ingest.outcome import (
    Ledger,
    Lineage,
    Outcome,
    count_held,
    read_outcomes,
    shortfall,
    standing_shortfall,
)
from pipeline.storage.address import open_storage

CONFIG = IngestConfig()
A, B, C, D = (letter * 16 for letter in "abcd")
"""Ids of partitions."""
NOW = datetime(2026, 11, 28, 3, 15, tzinfo=UTC)


def record(name: str, rows: int, successes: int, table: str = "/t.csv", reason: str = "http_404") -> PartitionRecord:
    counts = {"success": successes, reason: rows - successes}
    shard = ShardRecord(
        name=f"{name}-000",
        num_rows=rows,
        num_samples=successes,
        tar_size_bytes=0,
        tar_sha256="",
        sidecar_size_bytes=0,
        sidecar_sha256="",
    )
    return PartitionRecord(
        id=name,
        input_path=table,
        first_row=0,
        num_rows=rows,
        rows_sha256="",
        options_fingerprint="",
        counts={reason: count for reason, count in counts.items() if count},
        shards=(shard,),
    )


def retries_of(partition: str) -> str:
    """The table with rows of a partition that are tried again."""
    return f"/out/retries/{partition}-{'0' * 12}.parquet"


def manifest(*records: PartitionRecord) -> Manifest:
    return Manifest(version=1, created=NOW, partitions=records)


def outcome(rows: int, successes: int, age: int = 0, **fields) -> Outcome:
    defaults = {"tables": ["/t.csv"], "retry": False, "partitions": ["covered"]}
    return Outcome(written=NOW - timedelta(days=age), rows=rows, successes=successes, **(defaults | fields))


@pytest.mark.parametrize(
    ("rows", "successes", "has_samples", "history", "missed"),
    [
        (300, 0, False, (0, 0), True),
        (300, 3, True, (0, 0), True),  # 1 in 100
        (300, 29, True, (0, 0), True),
        (300, 30, True, (0, 0), False),  # exactly the floor
        (100, 0, True, (0, 0), True),
        (99, 0, True, (0, 0), False),  # too few rows to judge
        (99, 0, False, (0, 0), True),  # but not while there is no sample at all
        (1, 0, False, (0, 0), True),
        (0, 0, False, (0, 0), False),
        (300, 100, True, (1000, 900), True),  # 33% after 90%
        (300, 135, True, (1000, 900), False),
        (300, 100, True, (99, 99), False),  # too short a history
        (300, 30, True, (1000, 150), False),  # a table with many dead links, as before
    ],
)
def test_a_share_is_judged_by_a_floor_and_by_the_history(rows, successes, has_samples, history, missed):
    one = outcome(rows, successes, history_rows=history[0], history_successes=history[1])
    assert bool(shortfall(one, CONFIG, has_samples)) == missed


def test_a_recipe_states_its_own_shares_and_switches_them_off():
    assert "less than ingest.min_success_share=0.5" in shortfall(outcome(200, 99), IngestConfig(min_success_share=0.5), True)
    assert shortfall(outcome(200, 0), IngestConfig(min_success_share=0), False) is None
    fallen = outcome(200, 40, history_rows=1000, history_successes=900)
    assert "of the 90.00% of the 1,000 rows before them" in shortfall(fallen, CONFIG, True)
    assert shortfall(fallen, IngestConfig(min_share_of_history=0), True) is None
    assert shortfall(fallen.model_copy(update={"retry": True}), CONFIG, True) is None, "failed rows fail more often"


FAILED, FINE, FEW_FAILED, FEW_FINE = outcome(300, 0), outcome(300, 200), outcome(20, 0), outcome(20, 1)
RETRY_FAILED, RETRY_FINE = outcome(150, 1, retry=True), outcome(150, 90, retry=True)
OTHER_TABLE = outcome(300, 200, tables=["/other.csv"])


@pytest.mark.parametrize(
    ("newest_first", "retrying", "stands"),
    [
        ([FAILED], False, True),
        ([FEW_FAILED, FAILED], False, True),
        ([FEW_FINE, FAILED], False, False),
        ([FINE, FAILED], False, False),
        ([RETRY_FAILED, FAILED], False, True),
        ([RETRY_FINE, FAILED], False, False),
        ([RETRY_FAILED, FINE], False, False),  # a retry of dead links does not speak for the next night
        ([RETRY_FAILED, FINE], True, True),
        ([OTHER_TABLE, FAILED], False, True),  # what succeeds elsewhere clears nothing here
        ([FEW_FAILED], False, False),
        ([], False, False),
    ],
)
def test_a_verdict_stands_until_rows_of_the_same_tables_succeed(newest_first, retrying, stands):
    held = manifest(record("covered", 600, 200))
    found = standing_shortfall(held, newest_first, {"/t.csv"}, CONFIG, retrying, attempted=False)
    assert bool(found) == stands
    if stands:
        assert "in the run of 2026-11-28 03:15 UTC, and no row has succeeded since: " in found


def test_rows_of_earlier_releases_which_kept_no_outcomes_are_judged_as_one_run():
    assert "0 of 300 rows" in standing_shortfall(manifest(record(A, 300, 0)), [], {"/t.csv"}, CONFIG, False, False)
    retried = manifest(record(A, 300, 0), record(B, 300, 40, retries_of(A)))
    assert standing_shortfall(retried, [], {"/t.csv"}, CONFIG, False, False) is None, "40 of the 300 are samples now"


def test_held_rows_are_counted_once_and_by_reason_unless_some_were_retried():
    first = record(A, 300, 200)
    held = count_held(manifest(first, record(C, 9, 9, "/other.csv")), {"/t.csv"}, frozenset())
    assert (held.rows, held.without_sample, held.reasons, held.all_failed) == (300, 100, {"http_404": 100}, True)
    again = [record(B, 100, 30, retries_of(A)), record(D, 70, 5, retries_of(B))]
    held = count_held(manifest(first, *again), {"/t.csv"}, frozenset(["too_small"]))
    assert (held.rows, held.without_sample, held.reasons) == (300, 65, {})
    dropped = count_held(manifest(record(A, 3, 1, reason="too_small")), {"/t.csv"}, frozenset(["too_small"]))
    assert not dropped.all_failed


def test_a_retry_of_a_retry_comes_from_the_first_table():
    records = [
        record(A, 3, 0),
        record(B, 3, 0, retries_of(A)),
        record(C, 3, 0, retries_of(B)),
    ]
    lineage = Lineage(manifest(*records))
    assert lineage.sources([retries_of(C), "/u.csv"]) == {"/t.csv", "/u.csv"}
    assert {one.id for one in lineage.of_tables({"/t.csv"})} == {A, B, C}


def test_a_run_that_is_killed_after_its_first_commit_leaves_its_outcome(tmp_path):
    storage = open_storage(str(tmp_path))
    ledger = Ledger(storage, CONFIG, ["/t.csv"], None)
    assert read_outcomes(storage) == [], "a run without work writes nothing"
    ledger.close(set())
    assert read_outcomes(storage) == []
    ledger.add([record(A, 150, 0)])
    (early,) = read_outcomes(storage)
    ledger.add([record(B, 150, 100), record(C, 50, 50)])
    ledger.close({A, B})
    (late,) = read_outcomes(storage)
    assert (early.rows, early.successes, late.rows, late.successes) == (150, 0, 300, 100), "another run committed c"
    assert late.partitions == [A, B]


def test_the_history_is_what_was_fetched_before_and_the_new_keys_change_no_fingerprint(tmp_path):
    storage = open_storage(str(tmp_path))
    before = commit(storage, [record(A, 200, 150), record(B, 50, 1, retries_of(A))])
    ledger = Ledger(storage, CONFIG, ["/t.csv"], before)
    ledger.add([record(C, 5, 5)])
    (one,) = read_outcomes(storage)
    assert (one.history_rows, one.history_successes) == (200, 150), "retries are no first attempts"
    changed = IngestConfig(min_success_share=0.9, min_share_of_history=0)
    assert options_fingerprint(changed) == options_fingerprint(CONFIG)

"""Examples of failed rows, and rows that a change of settings concerns; tests/unit/jobs/test_ingest.py has whole runs."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import FetchConfig, IngestConfig
from pipeline.dataset.manifest import commit, read_manifest
from pipeline.ingest import failed_rows
from pipeline.ingest.failed_rows import advice, concerned_rows
from pipeline.ingest.outcome import Ledger, read_outcomes
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.ingest.retry import FOLDER, write_retry_tables
from pipeline.storage.address import open_storage

CONTACT = FetchConfig(user_agent_contact="a@e.org")


@pytest.fixture
def data_set(tmp_path):
    """A data set of 9 rows in three partitions: paths and addresses that nothing may fetch."""
    urls = [f"/data/{number}.jpg" if number % 3 else f"ftp://e.org/{number}" for number in range(9)]
    pq.write_table(pa.table({"url": urls, "caption": ["a"] * 9}), tmp_path / "t.parquet")
    config = IngestConfig(input=str(tmp_path / "t.parquet"), output=str(tmp_path / "out"), partition_size_rows=3)
    return run(config), config


def run(config):
    """Ingests without Ray, as jobs/ingest.py does."""
    storage, plan = open_storage(config.output), plan_ingest(config)
    ledger = Ledger(storage, config, plan.attempted_tables, None)
    records = [ingest_partition(spec, config) for spec in plan.partitions]
    ledger.add(records)
    commit(storage, records)
    return storage


def concerned(storage, config, fetch, outcomes=None):
    now = config.model_copy(update={"fetch": fetch})
    outcomes = read_outcomes(storage) if outcomes is None else outcomes
    return concerned_rows(storage, read_manifest(storage), outcomes, {config.input}, now)


def test_three_examples_of_each_reason_are_read_from_as_few_sidecars_as_needed(data_set, monkeypatch):
    storage, config = data_set
    manifest, read = read_manifest(storage), []
    read_sidecar = failed_rows.read_sidecar
    monkeypatch.setattr(failed_rows, "read_sidecar", lambda *words, **more: read.append(words) or read_sidecar(*words, **more))
    lines = advice(storage, manifest, {record.id for record in manifest.partitions}, config)
    assert [line.split(":")[0] for line in lines] == [
        *("bad_url", "  t.parquet row 2", "  t.parquet row 3", "  t.parquet row 5"),
        *("unknown_scheme", "  t.parquet row 1", "  t.parquet row 4", "  t.parquet row 7"),
    ]
    assert len(read) == 3
    read.clear()
    assert advice(storage, manifest, {manifest.partitions[1].id}, config)[1] == "  t.parquet row 5: /data/4.jpg"
    assert len(read) == 1


def test_a_sidecar_that_a_takedown_deleted_gives_no_example(data_set):
    storage, config = data_set
    manifest = read_manifest(storage)
    storage.delete(manifest.shards[0].sidecar_path)
    lines = advice(storage, manifest, {record.id for record in manifest.partitions}, config)
    assert lines[1] == "  t.parquet row 5: /data/4.jpg"


def test_unchanged_settings_concern_no_row_and_read_nothing(data_set, monkeypatch):
    storage, config = data_set
    monkeypatch.setattr(failed_rows, "read_sidecar", lambda *_: pytest.fail("a sidecar was read"))
    assert concerned(storage, config, config.fetch).counts == {}
    assert concerned(storage, config, CONTACT).counts == {}, "no row failed for want of a contact"


def test_rows_are_concerned_until_they_were_retried(data_set):
    storage, config = data_set
    allowed = FetchConfig(allow_files=("/data",))
    assert concerned(storage, config, allowed).counts == {"bad_url": 6}
    assert str(concerned(storage, config, allowed)) == "6 rows that failed before (bad_url 6)"
    assert concerned(storage, config, allowed, outcomes=[]).counts == {"bad_url": 6}, (
        "rows of earlier releases say so themselves"
    )
    write_retry_tables(storage, read_manifest(storage), ["bad_url"], config)
    run(config.model_copy(update={"input": storage.address(FOLDER), "fetch": allowed}))
    assert concerned(storage, config, allowed).counts == {}


def test_beyond_the_sidecars_that_may_be_read_the_figure_is_at_least(data_set, monkeypatch):
    storage, config = data_set
    monkeypatch.setattr(failed_rows, "MOST_PARTITIONS", 2)
    assert str(concerned(storage, config, FetchConfig(allow_files=("/data",)))).startswith("at least 4 rows")


def test_outcomes_of_a_release_with_other_keys_can_be_read(data_set):
    storage, config = data_set
    outcomes = [one.model_copy(update={"fetch": {"a_later_key": 1}}) for one in read_outcomes(storage)]
    assert concerned(storage, config, FetchConfig(allow_files=("/data",)), outcomes).counts == {"bad_url": 6}

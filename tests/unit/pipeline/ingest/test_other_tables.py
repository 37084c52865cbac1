"""New rows are compared with those of the data set's other tables."""

import pytest

from pipeline.dataset.manifest import commit
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from tests.unit.pipeline.ingest.test_plan import ROWS, plan, record_of, write


def test_another_table_under_other_options_is_said(tmp_path, caplog):
    output = tmp_path / "out"
    commit(
        open_storage(str(output)), map(record_of, plan(write(tmp_path / "t.csv"), output, image={"size_px": 512}).partitions)
    )
    plan(write(tmp_path / "u.csv", ROWS[:1]), output, image={"size_px": 512}, caption_column="n")
    assert not caplog.text
    plan(write(tmp_path / "u.csv", ROWS[:1]), output)
    assert "also has rows that were ingested under ingest.image.size_px=512; these are under other options" in caplog.text


def test_a_retry_under_other_options_than_its_rows_is_refused(tmp_path):
    output = tmp_path / "out"
    storage = open_storage(str(output))
    (spec,) = plan(write(tmp_path / "t.csv", ROWS[:1]), output, image={"size_px": 512}).partitions
    commit(storage, [record_of(spec)])
    write(output / "retries" / f"{spec.id}-0123456789ab.parquet", ROWS[:1])
    with pytest.raises(InputError, match=r"tables were ingested under ingest\.image\.size_px=512; retry with the same options"):
        plan(output / "retries", output)
    assert plan(output / "retries", output, image={"size_px": 512}, fetch={"total_timeout_s": 1}).num_rows == 1


MANY = [row | {"n": number} for number, row in enumerate(ROWS * 10)]


def test_a_renamed_table_is_refused_also_if_it_has_grown(tmp_path):
    output = tmp_path / "out"
    for name in ("t.csv", "u.parquet"):
        specs = plan(
            write(tmp_path / name, MANY if name == "t.csv" else MANY[::-1]), output, partition_size_rows=100
        ).partitions
        commit(open_storage(str(output)), map(record_of, specs))
    for name, other in (("t2.csv", "t.csv"), ("u2.parquet", "u.parquet")):
        grown = write(tmp_path / name, [*(MANY if other == "t.csv" else MANY[::-1]), ROWS[0]])
        for size in (100, 1000):
            with pytest.raises(
                InputError, match=rf"has 100 rows of .*{other}.* rows 1 to 100 \(counted from 1.*allow_copies=true"
            ):
                plan(grown, output, partition_size_rows=size)
        assert plan(grown, output, allow_copies=True).num_rows == 101


def test_copies_within_one_run_are_refused(tmp_path):
    for name in ("t.csv", "t (1).csv"):
        write(tmp_path / "in" / name, MANY)
    with pytest.raises(InputError, match=r"t\.csv: has 100 rows of .*t \(1\)\.csv"):
        plan(tmp_path / "in", tmp_path / "out", partition_size_rows=100)


def test_few_rows_in_common_are_said_once(tmp_path, caplog):
    for name in ("t.csv", "u.csv"):
        write(tmp_path / "in" / name)
    assert plan(tmp_path / "in", tmp_path / "out").num_rows == 20
    (record,) = caplog.records
    assert f"u.csv: has rows of {tmp_path}/in/t.csv, too; they become samples of their own" in record.getMessage()

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


def test_the_same_rows_under_another_name_are_said(tmp_path, caplog):
    output = tmp_path / "out"
    for name in ("t.csv", "u.parquet"):
        commit(open_storage(str(output)), map(record_of, plan(write(tmp_path / name), output).partitions))
    assert not caplog.text
    planned = plan(write(tmp_path / "moved.csv", [*ROWS, ROWS[0]]), output)
    assert planned.num_rows == 11
    plan(write(tmp_path / "moved.csv", [*ROWS, ROWS[0]]), output, partition_size_rows=1000)
    assert (
        f"moved.csv: has rows of {tmp_path}/t.csv, which the data set holds: they become samples a second time" in caplog.text
    )
    assert len(caplog.records) == 2

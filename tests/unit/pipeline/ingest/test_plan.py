"""A run plans the rows that the data set lacks, and refuses tables that were edited."""

import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.config import ImageConfig, IngestConfig
from pipeline.dataset.manifest import PartitionRecord, ShardRecord, commit
from pipeline.errors import InputError
from pipeline.ingest.driver import _write_notes
from pipeline.ingest.options import options_fingerprint
from pipeline.ingest.plan import PartitionSpec, _Planner, plan_ingest
from pipeline.ingest.rows import read_range
from pipeline.ingest.rows_digest import hash_rows_as_before
from pipeline.ingest.text_source import WRITTEN_WITHIN
from pipeline.storage.address import open_storage

ROWS = [{"url": f"http://e.org/{i}.jpg", "caption": f'caption "{i}", of many', "n": i} for i in range(10)]


def rows_of(table, first, count):
    return [row for batch in read_range(table, first, count) for row in batch.to_pylist()]


def write(path, rows=ROWS):
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    elif path.suffix == ".jsonl":
        import json

        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pyarrow.csv.write_csv(table, path, options)
    return str(path)


def plan(table, output, **options):
    return plan_ingest(IngestConfig(input=str(table), output=str(output), **({"partition_size_rows": 4} | options)))


def record_of(spec: PartitionSpec) -> PartitionRecord:
    shard = ShardRecord(
        name=spec.id,
        num_rows=spec.num_rows,
        num_samples=0,
        tar_size_bytes=0,
        tar_sha256="",
        sidecar_size_bytes=0,
        sidecar_sha256="",
    )
    fields = {name: value for name, value in vars(spec).items() if name in PartitionRecord.model_fields}
    return PartitionRecord(**fields, counts={"success": spec.num_rows}, shards=(shard,))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_grown_table_plans_its_new_rows_only(tmp_path, suffix):
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    write(table)
    first = plan(table, output)
    assert [(spec.first_row, spec.num_rows) for spec in first.partitions] == [(0, 4), (4, 4), (8, 2)]
    commit(open_storage(str(output)), map(record_of, first.partitions))
    again = plan(table, output)
    assert again.partitions == []
    assert again.rows_held == 10
    write(table, ROWS + [{"url": f"http://e.org/new{i}", "caption": "new", "n": i} for i in range(5)])
    grown = plan(table, output)
    assert [(spec.first_row, spec.num_rows) for spec in grown.partitions] == [(10, 4), (14, 1)]


def test_a_table_under_another_spelling_of_its_path_is_the_same_table(tmp_path, monkeypatch):
    output = tmp_path / "out"
    (tmp_path / "a").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    write(tmp_path / "a" / "t.csv")
    first = plan("../a/t.csv", output)
    commit(open_storage(str(output)), map(record_of, first.partitions))
    for spelling in ("t.csv", tmp_path / "a" / "t.csv", tmp_path / "linked" / "t.csv", "../a/../a"):
        assert plan(spelling, output).rows_held == 10
        assert plan(spelling, output).partitions == []
    write(tmp_path / "a" / "t.csv", [*ROWS, ROWS[0] | {"caption": "new"}])
    (spec,) = plan("t.csv", output).partitions
    assert (spec.first_row, spec.input_path) == (10, first.partitions[0].input_path)


def test_an_edited_or_shortened_table_is_refused(tmp_path):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write(table)
    commit(open_storage(str(output)), map(record_of, plan(table, output).partitions))
    write(table, [*ROWS[:5], ROWS[5] | {"caption": "edited"}, *ROWS[6:]])
    with pytest.raises(
        InputError, match=r"rows 5 to 8 \(counted from 1, without a header\) have changed since they were ingested"
    ):
        plan(table, output)
    write(table, ROWS[:8])
    with pytest.raises(
        InputError, match=r"rows 9 to 10 \(counted from 1, without a header\) have changed since they were ingested"
    ):
        plan(table, output)
    table.write_text("url,caption,n\n")
    with pytest.raises(
        InputError, match=r"rows 1 to 4 \(counted from 1, without a header\) have changed since they were ingested"
    ):
        plan(table, output)


def test_rows_are_not_ingested_again_under_other_options(tmp_path):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write(table)
    commit(open_storage(str(output)), map(record_of, plan(table, output).partitions))
    with pytest.raises(InputError, match="ingested under other options"):
        plan(table, output, image={"size_px": 64})
    assert plan(table, output, fetch={"total_timeout_s": 1}).partitions == []
    assert plan(table, output, partition_size_rows=7).partitions == []
    other = plan(write(tmp_path / "u.csv"), output, image={"size_px": 64})
    assert len(other.partitions) == 3, "another table may come in under other options"


def test_retries_are_held_where_the_data_set_was_moved_to(tmp_path):
    output = tmp_path / "out"
    name = f"retries/{'0' * 16}-{'0' * 12}.parquet"
    write(output / name)
    commit(open_storage(str(output)), map(record_of, plan(output / "retries", output).partitions))
    output.rename(tmp_path / "moved")
    again = plan(tmp_path / "moved" / "retries", tmp_path / "moved")
    assert (again.partitions, again.rows_held) == ([], 10)


@pytest.mark.parametrize("column", [lambda text: pa.array([text]).dictionary_encode(), lambda text: pa.array([[text]])])
def test_renamed_columns_of_any_type_are_an_edit(tmp_path, column):
    def write_columns(names):
        pq.write_table(pa.table({"url": ["u"], names[0]: column("a"), names[1]: column("b")}), table)

    table, output = tmp_path / "t.parquet", tmp_path / "out"
    write_columns(["caption", "other"])
    planned = plan(table, output).partitions
    of_earlier_release = hash_rows_as_before(pq.read_table(table))
    for digest, name in ((planned[0].rows_sha256, "out"), (of_earlier_release, "then")):
        commit(open_storage(str(tmp_path / name)), [record_of(replace(planned[0], rows_sha256=digest))])
        assert plan(table, tmp_path / name).partitions == []
    write_columns(["other", "caption"])
    with pytest.raises(InputError, match=r"row 1 \(counted from 1, without a header\) have changed"):
        plan(table, output)


@pytest.mark.parametrize("quality", [9, 42, 95])
def test_a_png_data_set_grows_under_another_level(tmp_path, quality):
    """Earlier releases took a quality of 42 for a png."""
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write(table)
    config = IngestConfig(image=ImageConfig(format="png"))
    old = options_fingerprint(config.model_copy(update={"image": config.image.model_copy(update={"quality": quality})}))
    specs = [replace(spec, options_fingerprint=old) for spec in plan(table, output, image={"format": "png"}).partitions]
    commit(open_storage(str(output)), map(record_of, specs))
    write(table, [*ROWS, ROWS[0] | {"caption": "new"}])
    for level in ({}, {"quality": 9}):
        grown = plan(table, output, image={"format": "png"} | level)
        assert (grown.rows_held, grown.num_rows) == (10, 1)
    for other in ({"size_px": 64, "format": "png"}, {"format": "jpg", "quality": quality}):
        with pytest.raises(InputError, match="ingested under other options"):
            plan(table, output, image=other)


def test_a_table_that_is_noted_as_held_is_not_read(tmp_path, monkeypatch):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write(table)
    let_rest(table)
    first = plan(table, output)
    storage = open_storage(str(output))
    manifest = commit(storage, map(record_of, first.partitions))
    _write_notes(storage, manifest, first)
    with monkeypatch.context() as patch:
        patch.setattr(_Planner, "plan_table", lambda *_: pytest.fail("the table was read"))
        again = plan(table, output)
    assert (again.partitions, again.rows_held) == ([], 10)
    status = table.stat()
    table.write_bytes(table.read_bytes().replace(b"of many", b"of none"))
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an archive that is unpacked does
    with pytest.raises(InputError, match="have changed since they were ingested"):
        plan(table, output)


def let_rest(table):
    """As if nobody had written to it for more than an hour."""
    before = table.stat().st_mtime - WRITTEN_WITHIN.total_seconds() - 1
    os.utime(table, (before, before))


def test_of_partitions_that_share_rows_the_first_that_is_committed_stays(tmp_path):
    table, output = tmp_path / "t.parquet", tmp_path / "out"
    write(table)
    small, large = (plan(table, output, partition_size_rows=size).partitions for size in (4, 6))
    storage = open_storage(str(output))
    commit(storage, [record_of(small[1])])
    manifest = commit(storage, [*map(record_of, large), record_of(small[0]), record_of(small[2])])
    assert [(record.first_row, record.num_rows) for record in manifest.partitions] == [(0, 4), (4, 4), (8, 2)]


def test_rows_of_text_tables_wait_where_a_worker_finds_them(tmp_path):
    specs = plan(write(tmp_path / "t.csv"), tmp_path / "out").partitions
    assert [row["url"] for spec in specs for row in rows_of(spec.rows_path, spec.rows_first, spec.num_rows)] == [
        row["url"] for row in ROWS
    ]
    parquet = plan(write(tmp_path / "t.parquet"), tmp_path / "out").partitions
    assert [(spec.rows_path, spec.rows_first) for spec in parquet] == [("", 0), ("", 4), ("", 8)]


def test_a_dry_plan_writes_nothing(tmp_path):
    config = IngestConfig(input=write(tmp_path / "t.csv"), output=str(tmp_path / "out"))
    assert plan_ingest(config, dry_run=True).num_rows == 10
    assert not (tmp_path / "out").exists()


def test_a_finished_partition_that_nobody_committed_is_adopted(tmp_path):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write(table)
    spec = plan(table, output).partitions[1]
    open_storage(str(output)).write(record_of(spec).path, record_of(spec).model_dump_json().encode())
    after = plan(table, output)
    assert after.adopted == [record_of(spec)]
    assert [left.first_row for left in after.partitions] == [0, 8]


def test_missing_columns_are_answered_with_those_that_exist(tmp_path):
    write(tmp_path / "t.csv", [{"URL": "http://a", "caption": "b"}])
    with pytest.raises(InputError, match=r"ingest\.url_column=url: .*has the columns URL, caption"):
        plan(tmp_path / "t.csv", tmp_path / "out")
    write(tmp_path / "t.csv", [{"url": "http://a", "captions": "b"}])
    with pytest.raises(InputError, match=r"did you mean ingest\.caption_column=captions\?"):
        plan(tmp_path / "t.csv", tmp_path / "out")


def test_a_table_without_rows_is_nothing_to_do(tmp_path):
    (tmp_path / "t.csv").write_text("url,caption\n")
    nothing = plan(tmp_path / "t.csv", tmp_path / "out")
    assert (nothing.partitions, nothing.rows_held) == ([], 0)
    assert not (tmp_path / "out").exists()


def test_tables_without_rows_are_named(tmp_path, caplog):
    write(tmp_path / "in" / "full.csv")
    (tmp_path / "in" / "header.csv").write_text("url,caption\n")
    for name in ("bytes.csv", "bytes.tsv", "bytes.jsonl"):
        (tmp_path / "in" / name).write_bytes(b"")
    pq.write_table(pa.table({"url": pa.array([], pa.string()), "caption": []}), tmp_path / "in" / "rows.parquet")
    assert plan(tmp_path / "in", tmp_path / "out").num_rows == 10
    names = ", ".join(f"{tmp_path}/in/{name}" for name in ("bytes.csv", "bytes.jsonl", "bytes.tsv"))
    assert f"ingest.input={tmp_path}/in: skipped 5 tables that are without a row: {names}, ..." in caplog.text


def test_an_output_must_be_named(tmp_path):
    write(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"ingest\.output: is empty"):
        plan(tmp_path / "t.csv", "")


@pytest.mark.parametrize("pattern", ["", "/**/*.parquet"])
def test_what_ingestion_has_written_below_its_input_is_no_input(tmp_path, pattern, caplog):
    folder = tmp_path / "data"
    write(folder / "t.parquet")
    write(folder / "more" / "u.parquet", [{"url": "v", "caption": "w", "n": 1}])
    output = folder / "pairs"
    planned = plan(f"{folder}{pattern}", output)
    assert sum(spec.num_rows for spec in planned.partitions) == 11
    storage = open_storage(str(output))
    commit(storage, [record_of(spec) for spec in planned.partitions])
    for name in ("shards", "inputs", "retries"):
        write(output / name / "x.parquet")
    again = plan(f"{folder}{pattern}", output)
    assert (again.partitions, again.rows_held) == ([], 11)
    assert "skipped 3 files that are part of a data set of jobs/ingest.py" in caplog.text
    write(tmp_path / "elsewhere" / "retries" / "r.parquet")
    assert len(plan(f"{output}/retries", tmp_path / "other").tables) == 1, "they are read where they are asked for"


def test_a_link_to_a_table_that_is_there_too_is_skipped(tmp_path, caplog):
    write(tmp_path / "t" / "2024.csv")
    (tmp_path / "t" / "latest.csv").symlink_to("2024.csv")
    planned = plan(tmp_path / "t", tmp_path / "out")
    assert [table.rpartition("/")[2] for table in planned.tables] == ["2024.csv"]
    assert "skipped links to tables that are there too" in caplog.text
    assert "latest.csv" in caplog.text

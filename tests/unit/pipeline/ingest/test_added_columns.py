"""A table that is written again with more columns is the table that it was."""

import json
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ImageConfig, IngestConfig
from pipeline.dataset.manifest import commit, read_manifest, read_sidecar
from pipeline.errors import InputError
from pipeline.ingest.added_columns import _without_members
from pipeline.ingest.first_text_reader import first_batches
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.ingest.rows_digest import hash_rows_as_before
from pipeline.ingest.text_source import open_source
from pipeline.storage.address import open_storage

ROWS = [{"url": f"ftp://e.org/{n}", "caption": f'a "{n}", b', "key": n} for n in range(5)]
SUFFIXES = pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])


def write(path, rows):
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        options = pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pa.csv.write_csv(table, path, options)
    os.utime(path, (1, 1))


def ingest(table, output, **options):
    config = IngestConfig(
        input=str(table), output=str(output), partition_size_rows=2, image=ImageConfig(format="png"), **options
    )
    plan = plan_ingest(config)
    commit(open_storage(str(output)), [ingest_partition(spec, config) for spec in plan.partitions])
    return plan


def with_more(rows, place=None):
    """Rows with a column more, at the end or in another place."""
    more = []
    for number, row in enumerate(rows):
        items = list(row.items())
        items.insert(len(items) if place is None else place, ("score", number / 2))
        more.append(dict(items))
    return more


@SUFFIXES
@pytest.mark.parametrize("place", [None, 0, 1])
def test_a_table_with_one_more_column_fetches_only_its_new_rows(tmp_path, suffix, place, caplog):
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    write(table, ROWS)
    assert ingest(table, output).num_rows == 5
    write(table, with_more([*ROWS, ROWS[0] | {"caption": "new"}], place))
    grown = ingest(table, output)
    assert (grown.rows_held, grown.num_rows) == (5, 1)
    assert f"{table}: has new columns: score; only rows that are ingested from now on have them" in caplog.text
    storage = open_storage(str(output))
    rows = [row for shard in read_manifest(storage).shards for row in read_sidecar(storage, shard).to_pylist()]
    assert [str(row.get("score")) for row in rows if row["caption"] == "new"] == ["2.5"]
    assert sorted(str(row["source_key"]) for row in rows) == ["0", "0", "1", "2", "3", "4"]
    assert (ingest(table, output).num_rows, ingest(table, tmp_path / "other").num_rows) == (0, 6), "the remedy works"


@SUFFIXES
def test_two_columns_may_come_one_after_the_other(tmp_path, suffix):
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    write(table, ROWS)
    ingest(table, output)
    rows = with_more([*ROWS, *ROWS[:2]])
    write(table, rows)
    assert ingest(table, output).num_rows == 2
    write(table, [row | {"tag": "x", "more": [1]} if suffix in ("parquet", "jsonl") else row | {"tag": "x"} for row in rows])
    assert ingest(table, output).num_rows == 0


@SUFFIXES
def test_rows_that_have_changed_too_are_refused_with_what_is_known_of_the_columns(tmp_path, suffix):
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    write(table, ROWS)
    ingest(table, output)
    write(table, with_more([*ROWS[:3], ROWS[3] | {"caption": "edited"}, ROWS[4]]))
    with pytest.raises(InputError, match=r"rows 3 to 4 .* have changed since .* \(it has the new columns score\); a table may"):
        ingest(table, output)
    write(table, [{name: value for name, value in row.items() if name != "key"} for row in ROWS])
    with pytest.raises(InputError, match=r"rows 1 to 2 .* have changed since .* \(it has lost the columns key\); a"):
        ingest(table, output)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_of_the_first_reader_are_refused_with_the_new_columns(tmp_path, suffix):
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    write(table, ROWS)
    config = IngestConfig(input=str(table), output=str(output))
    (spec,) = plan_ingest(config).partitions
    (rows,) = [pa.Table.from_batches(first_batches(open_source(str(table)), table.stat().st_size))]
    old = replace(spec, text_reader="", rows_sha256=hash_rows_as_before(rows))
    commit(open_storage(str(output)), [ingest_partition(old, config)])
    assert plan_ingest(config).partitions == []
    write(table, with_more(ROWS))
    with pytest.raises(InputError, match=r"rows 1 to 5 .* \(it has the new columns score\); a table may only grow"):
        plan_ingest(config)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1, "c": 3}'),
        ('{"b":2,"a":1}', '{"a":1}'),
        ('{ "a" : 1 ,\t"b" : {"b": [2, "}"]} }', '{ "a" : 1 }'),
        ('{"b": 2}', "{}"),
        ('{"a": {"b": 2}}', '{"a": {"b": 2}}'),
        ('{"\\u0062": 2, "a": "\\u00e9é"}', '{"a": "\\u00e9é"}'),
        ("[1]", "[1]"),
        ('{"b": ', '{"b": '),
        ("{}", "{}"),
    ],
)
def test_a_member_is_cut_out_of_a_line_that_stays_as_it_is_written(line, expected):
    assert _without_members(line.encode(), ("b",)) == expected.encode()

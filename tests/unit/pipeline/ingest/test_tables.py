"""Tables of every kind are streamed, by row range, also while they grow."""

import hashlib
import io
import re
import shlex
from datetime import timedelta

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import PartitionRecord, ShardRecord, commit
from pipeline.errors import InputError, ReplacedError
from pipeline.ingest import tables
from pipeline.ingest.driver import _write_notes
from pipeline.ingest.plan import PartitionSpec, plan_ingest
from pipeline.ingest.rows import read_range
from pipeline.ingest.rows_digest import hash_rows
from pipeline.ingest.table_files import list_tables
from pipeline.ingest.tables import as_typed, check_columns, read_chunks
from pipeline.ingest.text_source import say_that_a_line_waits
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


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_rows_of_every_format_are_read_by_range(tmp_path, suffix):
    table = write(tmp_path / f"t.{suffix}")
    rows = rows_of(table, 3, 5)
    assert [row["url"] for row in rows] == [row["url"] for row in ROWS[3:8]]
    assert [row["caption"] for row in rows] == [row["caption"] for row in ROWS[3:8]]
    assert [int(row["n"]) for row in rows] == [3, 4, 5, 6, 7]
    assert rows_of(table, 9, 5)[0]["url"] == ROWS[9]["url"]


@pytest.mark.parametrize(
    "values",
    [
        ('["a", 1]', '["b"]'),
        ('{"text": "a", "n": 1}', '{"text": "b", "n": "x"}'),
        ("{}", "{}"),
        ("true", '"a dog"'),
        ('[{"raw": "a"}, {"raw": 1}]', '[{"raw": "b"}]'),
    ],
)
def test_captions_that_would_become_json_text_are_refused(tmp_path, values):
    lines = [f'{{"url": "http://e.org/{n}.jpg", "caption": {value}}}\n' for n, value in enumerate(values)]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match=r"ingest\.caption_column=caption: .*write"):
        plan(tmp_path / "t.jsonl", tmp_path / "out")


def test_tables_on_s3_are_listed_and_read(bucket, tmp_path):
    storage = open_storage(f"{bucket}/tables")
    for name in ("1.parquet", "2.csv"):
        write(tmp_path / name)
        storage.write_file(name, tmp_path / name)
    assert list_tables(f"{bucket}/tables") == [f"{bucket}/tables/1.parquet", f"{bucket}/tables/2.csv"]
    assert list_tables(f"{bucket}/tables/*.csv") == [f"{bucket}/tables/2.csv"]
    assert list_tables(f"{bucket}/tables/1.parquet") == [f"{bucket}/tables/1.parquet"]
    for table in list_tables(f"{bucket}/tables"):
        assert [row["url"] for row in rows_of(table, 8, 5)] == [row["url"] for row in ROWS[8:]]


@pytest.mark.parametrize(("name", "content"), [("t.parquet", b"PAR1 not really"), ("t.csv", b"url,caption\n1,2,3,4\n")])
def test_a_table_that_cannot_be_read_is_one_message(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        plan(tmp_path / name, tmp_path / "out")


def test_chunks_are_cut_exactly_whatever_the_batches(tmp_path):
    table = write(tmp_path / "t.parquet")
    chunks = list(read_chunks(table, iter([3, 6, 100])))
    assert [chunk.num_rows for chunk in chunks] == [3, 6, 1]
    assert [n for chunk in chunks for n in chunk["n"].to_pylist()] == list(range(10))


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


HALVES = [
    ("csv", "url,caption\nhttp://a/1,one\n", "http://a/2,t", "wo\nhttp://a/3,three\n"),
    ("csv", "url,caption\nhttp://a/1,one\n", "http://", "a/2,two\nhttp://a/3,three\n"),
    ("csv", 'url,caption\nhttp://a/1,"one\nline"\n', 'http://a/2,"two\n', 'lines"\nhttp://a/3,three\n'),
    ("csv", "url,caption\nhttp://a/1,one\n", 'http://a/2,"two\nli', 'nes"\nhttp://a/3,three\n'),
    ("tsv", "url\tcaption\r\nhttp://a/1\tone\r\n", "http://a/2\tt", "wo\r\nhttp://a/3\tthree\r\n"),
    ("jsonl", '{"url": "http://a/1", "caption": "one"}\n', '{"url": "http://a/2", "c', 'aption": "two"}\n'),
    ("csv", "", "url,cap", "tion\nhttp://a/1,one\n"),
    ("jsonl", "", '{"url": "http://a/1"', ', "caption": "one"}\n'),
    ("csv", "", "", "url,caption\nhttp://a/1,one\n"),
]


@pytest.mark.parametrize(("suffix", "whole", "half", "rest"), HALVES)
def test_a_row_that_was_half_written_is_ingested_once_it_is_whole(tmp_path, caplog, suffix, whole, half, rest):
    """All bytes of a table appear in the end as if they had been there at once, however it was cut when it was planned."""
    say_that_a_line_waits.cache_clear()
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    (tmp_path / f"whole.{suffix}").write_bytes((whole + half + rest).encode())
    expected = rows_of(str(tmp_path / f"whole.{suffix}"), 0, 9)
    table.write_bytes((whole + half).encode())
    storage = open_storage(str(output))
    first = plan(table, output)
    early = [row for spec in first.partitions for row in rows_of(spec.rows_path, spec.rows_first, spec.num_rows)]
    assert early == expected[: len(early)]
    assert bool(half) == ("the last line may be incomplete" in caplog.text)
    if first.partitions:
        _write_notes(storage, commit(storage, map(record_of, first.partitions)), first)
    with table.open("ab") as file:
        file.write(rest.encode())
    late = [row for spec in plan(table, output).partitions for row in rows_of(spec.rows_path, spec.rows_first, spec.num_rows)]
    assert early + late == expected


@pytest.mark.parametrize(
    ("suffix", "text"), [("csv", "url,caption\na,one\nb,two"), ("jsonl", '{"url": "a", "caption": "one"}')]
)
def test_a_last_line_without_a_break_counts_when_nobody_has_written_for_an_hour(tmp_path, suffix, text, monkeypatch):
    table, output = tmp_path / f"t.{suffix}", tmp_path / "out"
    table.write_text(text)
    before = plan(table, output)
    storage = open_storage(str(output))
    if before.partitions:
        _write_notes(storage, commit(storage, map(record_of, before.partitions)), before)
    monkeypatch.setattr(
        "pipeline.ingest.text_source.WRITTEN_WITHIN", timedelta(0)
    )  # the hour has passed, and the file is as it was
    after = plan(table, output)
    assert after.num_rows == 1
    assert after.partitions[0].first_row == before.num_rows


def test_a_parquet_table_that_is_being_written_is_refused_until_it_is_whole(tmp_path):
    table, output = tmp_path / "t.parquet", tmp_path / "out"
    write(table)
    whole = table.read_bytes()
    for part in (whole[:100], b""):
        table.write_bytes(part)
        with pytest.raises(InputError, match=r"t\.parquet: the table cannot be read"):
            plan(table, output)
    table.write_bytes(whole)
    assert plan(table, output).num_rows == len(ROWS)


def test_a_parquet_table_that_is_replaced_by_a_longer_one_gives_a_run_the_rows_that_it_has_planned(tmp_path):
    table, output = tmp_path / "t.parquet", tmp_path / "out"
    write(table)
    specs = plan(table, output).partitions
    write(table, [*ROWS, *({**row, "n": row["n"] + len(ROWS)} for row in ROWS)])
    read = [row for spec in specs for row in rows_of(spec.input_path, spec.rows_first, spec.num_rows)]
    assert read == ROWS
    commit(open_storage(str(output)), map(record_of, specs))
    assert [(spec.first_row, spec.num_rows) for spec in plan(table, output).partitions] == [(10, 4), (14, 4), (18, 2)]


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_parquet_table_that_is_replaced_while_it_is_read_is_gone_on_with_in_the_longer_one(tmp_path, request, place):
    storage = open_storage(str(tmp_path / "tables") if place == "disk" else f"{request.getfixturevalue('bucket')}/tables")
    rows = [{"url": f"http://e.org/{n}", "caption": hashlib.sha256(b"%d" % n).hexdigest() * 20, "n": n} for n in range(6000)]

    def put(count):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows[:count]), file, row_group_size=count // 4, compression="none")
        storage.write("t.parquet", file.getvalue())

    put(4000)
    reading = (row for batch in read_range(storage.address("t.parquet"), 100, 3900, 64) for row in batch.to_pylist())
    read = [next(reading) for _ in range(10)]
    put(6000)
    read += reading
    assert read == rows[100:4000]


def test_a_table_that_is_replaced_again_and_again_is_given_up(monkeypatch):
    asked = []

    def replaced(table, *_):
        asked.append(table)
        raise ReplacedError(f"{table}: was replaced while it was being read; read it again")

    monkeypatch.setattr(tables, "_read_batches", replaced)
    with pytest.raises(ReplacedError, match="was replaced while it was being read; read it again"):
        list(tables.read_batches("s3://b/t.parquet"))
    assert len(asked) == tables.REPLACED_ATTEMPTS


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"\xff\xd8", None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([[1], []]),
        pa.array([{"a": 1}, None]),
        pa.array(["a", "b"], pa.string_view()),
        pa.array([1, None], pa.timestamp("us")),
        pa.nulls(2),
    ],
    ids=lambda values: str(values.type)[:12],
)
def test_columns_of_any_type_can_be_planned_and_an_edit_is_seen(tmp_path, values):
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"url": ["u", "v"], "caption": ["c", "d"], "x": values}), table)
    before = hash_rows(next(read_chunks(str(table), [2, 2])))
    assert [row["x"] for row in rows_of(str(table), 0, 2)] == values.to_pylist()
    pq.write_table(pa.table({"url": ["u", "v"], "caption": ["c", "d"], "x": pa.array(["other", "values"])}), table)
    assert hash_rows(next(read_chunks(str(table), [2, 2]))) != before


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["u"])] * 3, names=["url", "caption", "caption"])
    pq.write_table(table, tmp_path / "t.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(InputError, match="two columns are named caption"):
            plan_ingest(IngestConfig(input=str(tmp_path / name), output=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("table", "names", "remedy"),
    [
        ("t.csv", ["url", " caption"], "did you mean 'ingest.caption_column=\" caption\"'?"),
        ("t.csv", ["url", "Caption"], "did you mean ingest.caption_column=Caption?"),
        ("t.csv", ["sep=", ""], "its first line tells a spreadsheet how it is separated; remove the line"),
        ("t.csv", ["sep=;"], "its first line tells a spreadsheet how it is separated; remove the line"),
        ("t.csv", ["url;caption"], "separated by semicolons"),
        ("t.tsv", ["url,caption"], "separated by commas: give it the suffix .csv"),
        ("t.csv", ["url", "caption", "", ""], "two columns have no name; drop them"),
    ],
)
def test_the_remedy_for_columns_that_are_missing(table, names, remedy):
    with pytest.raises(InputError, match=re.escape(remedy)):
        check_columns(table, names, IngestConfig())


@pytest.mark.parametrize(
    "text", ["caption", "bild_text", "007", "1e5", " x", "null", "Yes", "a: b", "it's", "été", "{a}", "#1", "~"]
)
def test_a_column_as_it_is_typed_is_read_as_its_name(text):
    (word,) = shlex.split(as_typed("key", text))
    assert yaml.safe_load(word.removeprefix("key=")) == text

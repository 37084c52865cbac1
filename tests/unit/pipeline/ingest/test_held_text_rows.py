"""Rows that the first reader of text tables has hashed are recognised; later rows are read by the reader of today."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import PartitionRecord, commit, read_manifest
from pipeline.errors import InputError
from pipeline.ingest.first_text_reader import first_batches
from pipeline.ingest.options import options_fingerprint
from pipeline.ingest.plan import plan_ingest
from pipeline.ingest.rows_digest import hash_rows
from pipeline.ingest.tables import cut_chunks
from pipeline.ingest.text_source import open_source
from pipeline.storage.address import open_storage

FIXTURES = Path(__file__).parents[3] / "fixtures" / "version_0_1"


class DataSet:
    """A table of which an earlier version has ingested rows."""

    def __init__(self, folder, name, text, partition_size_rows=2):
        self.table, self.output = folder / name, folder / "out"
        self.config = IngestConfig(input=str(self.table), output=str(self.output), partition_size_rows=partition_size_rows)
        self.write(text)
        self.storage = open_storage(str(self.output))

    def write(self, text):
        self.table.write_bytes(text if isinstance(text, bytes) else text.encode())
        before = self.table.stat().st_mtime - 7200
        os.utime(self.table, (before, before))

    def first_records(self, size=2):
        """Records as the first reader's version has written them."""
        source, row, found = open_source(str(self.table)), 0, []
        for chunk in cut_chunks(first_batches(source, source.size_bytes), iter([size] * 1000)):
            found.append(
                PartitionRecord(
                    id=f"{row:016x}",
                    input_path=str(self.table),
                    first_row=row,
                    num_rows=chunk.num_rows,
                    rows_sha256=hash_rows(chunk),
                    options_fingerprint=options_fingerprint(self.config),
                    counts={"success": chunk.num_rows},
                    shards=(),
                )
            )
            row += chunk.num_rows
        return found

    def hold(self, records):
        commit(self.storage, records)

    def plan(self):
        return plan_ingest(self.config)

    def finish(self, plan):
        """Commit a plan as if its rows had been ingested."""
        fields = [name for name in PartitionRecord.model_fields if name not in ("counts", "shards")]
        records = [
            PartitionRecord(**{name: getattr(spec, name) for name in fields}, counts={"success": spec.num_rows}, shards=())
            for spec in plan.partitions
        ]
        self.hold([*plan.adopted, *records])


def planned(plan):
    """(first row, captions) of each planned partition."""
    return [(spec.first_row, pq.read_table(spec.rows_path)["caption"].to_pylist()) for spec in plan.partitions]


CSV = 'url,caption,x\nu0,NA,1\nu1,"a ""b"", c",2\nu2,"two\nlines",NULL\nu3,5" screen,\n'
LINE = '{{"url": "u{0}", "caption": "{1}", "x": {2}}}\n'
JSONL = "".join(LINE.format(n, "2020-01-01" if n < 2 else "c", n) for n in range(4))
TABLES = [
    ("t.csv", CSV, "u4,NULL,z\nu5,six,\n"),
    ("t.csv", CSV.replace("\n", "\r\n"), "u4,NULL,z\r\nu5,six,\r\n"),
    ("t.csv", "\ufeff" + CSV.rstrip("\n"), "\nu4,NULL,z\nu5,six,\n"),
    (
        "t.tsv",
        CSV.replace('"a ""b"", c"', "plain").replace('"two\nlines"', "two").replace(",", "\t"),
        "u4\tNULL\tz\nu5\tsix\t\n",
    ),
    ("t.jsonl", JSONL, LINE.format(4, "NULL", 0.5) + LINE.format(5, "six", '"text"')),
]


@pytest.mark.parametrize(("name", "text", "more"), TABLES)
def test_a_table_of_the_first_reader_grows_and_grows_again(tmp_path, name, text, more):
    data = DataSet(tmp_path, name, text)
    data.hold(data.first_records())
    data.write(text + more)
    grown = data.plan()
    assert planned(grown) == [(4, ["NULL", "six"])]
    assert grown.rows_held == 4
    assert [spec.text_reader[:1] for spec in grown.partitions] == ["2"]
    data.finish(grown)
    data.write(text + more + more.lstrip("\n"))
    again = data.plan()
    assert planned(again) == [(6, ["NULL", "six"])]
    assert again.rows_held == 6


@pytest.mark.parametrize(("name", "text", "more"), TABLES)
def test_an_edit_of_a_row_of_the_first_reader_is_refused(tmp_path, name, text, more):
    data = DataSet(tmp_path, name, text)
    data.hold(data.first_records())
    data.write(text.replace("u1", "v1") + more)
    with pytest.raises(
        InputError, match=r"rows 1 to 2 \(counted from 1, without a header\) have changed since they were ingested"
    ):
        data.plan()
    data.write("".join(text.splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match="have changed since they were ingested"):
        data.plan()


@pytest.mark.parametrize(("name", "text", "more"), TABLES)
def test_completions_of_the_first_reader_are_adopted_and_gaps_are_read_today(tmp_path, name, text, more):
    data = DataSet(tmp_path, name, text + more)
    first = data.first_records() if name != "t.jsonl" else DataSet(tmp_path, name, text).first_records()
    data.write(text + more)
    record = first[1]
    data.storage.write(record.path, record.model_dump_json().encode())
    plan = data.plan()
    assert plan.adopted == [record]
    assert [spec.first_row for spec in plan.partitions] == [0, 4]
    data.finish(plan)
    after = data.plan()
    assert (after.partitions, after.adopted, after.rows_held) == ([], [], 6)
    assert "text_reader" not in data.storage.read("manifests/00000001.json").decode().split(record.id)[1].split("}")[0]


def test_lines_that_the_first_reader_swallowed_are_named_and_the_table_grows(tmp_path, caplog):
    text = 'url\tcaption\nu0\tone\nu1\t"two\nu2\tthree\nu3\t"four\nu4\tfive\n'
    data = DataSet(tmp_path, "t.tsv", text)
    first = data.first_records()
    assert sum(record.num_rows for record in first) == 3
    data.hold(first)
    data.write(text + 'u5\t"six\nu6\tseven\n')
    plan = data.plan()
    assert planned(plan) == [(3, ['"six', "seven"])]
    assert "an earlier version read these lines as one row, because of a quote: 3 to 5" in caplog.text
    data.finish(plan)
    assert data.plan().partitions == []


def test_unfinished_rows_between_others_that_are_more_rows_today_are_named(tmp_path, caplog):
    text = 'url\tcaption\nu0\tone\nu0\tone\nu1\t"two\nu2\tthree\nu3\t"four\nu4\tfive\nu5\tsix\nu6\tseven\n'
    data = DataSet(tmp_path, "t.tsv", text)
    first = data.first_records()
    data.hold([first[0], first[2]])
    plan = data.plan()
    assert plan.partitions == []
    assert "rows 3 to 4 (counted from 1, without a header) were left unfinished" in caplog.text
    assert "they are 4 rows now" in caplog.text


@pytest.mark.parametrize("name", ["csv", "tsv", "jsonl"])
def test_the_tables_of_version_0_1_grow_by_their_new_rows(tmp_path, name):
    table, output = tmp_path / f"pairs.{name}", tmp_path / "pairs"
    for path in (FIXTURES / "bucket" / "pairs" / "manifests").iterdir():
        text = path.read_text().replace("s3://rayclip-version-0-1/tables", str(tmp_path))
        target = output / "manifests" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    held = [record for record in read_manifest(open_storage(str(output))).partitions if record.input_path == str(table)]
    assert held
    config = IngestConfig(input=str(table), output=str(output), image={"size_px": 32, "quality": 80})
    assert options_fingerprint(config) == held[0].options_fingerprint, "a key at its default leaves the fingerprint as it was"
    old, new = FIXTURES / "bucket" / "tables", FIXTURES / "later" / "tables"
    table.write_bytes((old / table.name).read_bytes())
    assert plan_ingest(config).partitions == []
    table.write_bytes((new / table.name).read_bytes())
    plan = plan_ingest(config)
    assert plan.rows_held == sum(record.num_rows for record in held)
    captions = [caption for _, part in planned(plan) for caption in part]
    assert captions == [f'grown "by" a row, &lt;{name}&gt; ü', f"grown by another row, {name}"]

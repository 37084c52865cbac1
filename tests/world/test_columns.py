"""A column that we do not interpret goes through as it came: type and value, in the sidecar; as valid JSON, in the tar."""

import decimal
import json
import logging
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.reporting.run_data import _some_samples
from pipeline.config import CurateConfig
from pipeline.dataset.columns import captions_of
from pipeline.dataset.manifest import ShardRecord, commit_choice, read_manifest, read_sidecar
from pipeline.errors import InputError
from pipeline.ingest.retry import write_retry_tables
from pipeline.storage.base import Storage
from pipeline.versions.curation import Rules, check_rules, judge, select
from pipeline.versions.rewrite import rewrite
from tests.support.stored_tables import Stored, ingest, store, write_table


def counted(kind: pa.DataType, count: int) -> pa.Array:
    """An array of a temporal type, by its count of units, and a null."""
    width = pa.int64() if kind.bit_width == 64 else pa.int32()
    return pa.array([count, None], width).view(kind)


def not_utf8() -> pa.Array:
    """Two strings, of which the first is not UTF-8."""
    return pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 3, 7], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffbgood")]
    )


LISTED = {
    "an unsigned integer beyond 2**63": (pa.array([2**63 + 5, None], pa.uint64()), 2**63 + 5),
    "a date in the year 29349": (counted(pa.date32(), 10_000_000), "29349-01-26"),
    "a time in the year 33658": (counted(pa.timestamp("ms"), 10**15), "33658-09-27 01:46:40.000"),
    "nanoseconds": (counted(pa.timestamp("ns"), 1_600_000_000_123_456_789), "2020-09-13 12:26:40.123456789"),
    "a dictionary": (pa.array(["a", None]).dictionary_encode(), "a"),
    "nested values": (pa.array([[{"a": [1, None]}], None]), [{"a": [1, None]}]),
    "nulls alone": (pa.nulls(2), None),
}
"""The cases of the notes: (column, first value in the json member)."""

FURTHER = {
    "a time zone that no list has": (counted(pa.timestamp("us", "psycopg2/+02"), 10**15), "2001-09-09 01:46:40+00:00"),
    "milliseconds beyond nanoseconds": (counted(pa.timestamp("ms"), 21_331_123_213_123), "2645-12-16 00:00:13.123000"),
    "a time of day with nanoseconds": (counted(pa.time64("ns"), 123_456_789), "00:00:00.123456789"),
    "a duration beyond Python's": (counted(pa.duration("s"), 2**50), f"{2**50} s"),
    "a decimal of 58 digits": (
        pa.array([decimal.Decimal("79812042284098215031627424085742912847.808901592419987254"), None], pa.decimal256(60, 18)),
        "79812042284098215031627424085742912847.808901592419987254",
    ),
    "NaN and infinity": (pa.array([float("nan"), float("inf")]), None),
    "NaN in a list": (pa.array([[1.5, float("nan")], None]), [1.5, None]),
    "bytes of text": (pa.array([b"plain", None]), "plain"),
    "bytes of no text": (pa.array([b"\xff\x00\xff", None], pa.binary(3)), {"base64": "/wD/"}),
    "views of text": (pa.array(["a text that is not inline", None], pa.string_view()), "a text that is not inline"),
    "large lists": (pa.array([["a"], None], pa.large_list(pa.large_string())), ["a"]),
    "lists of one length": (pa.array([[1, 2], None], pa.list_(pa.int16(), 2)), [1, 2]),
    "a map": (pa.array([[("k", 1), ("k", 2)], None], pa.map_(pa.string(), pa.int32())), [["k", 1], ["k", 2]]),
    "two fields of one name": (
        pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["n", "n"]),
        [["n", 1], ["n", 3]],
    ),
    "a half float": (pa.array([np.float16(0.5), None], pa.float16()), 0.5),
    "a UUID": (pa.array([b"0123456789abcdef", None], pa.uuid()), "30313233-3435-3637-3839-616263646566"),
    "an ordered category": (
        pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int8()), ["small", "large"], ordered=True), "large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTED | FURTHER)
def test_a_column_of_any_type_is_in_the_sidecar_as_it_came_and_in_the_json_as_documented(name, tmp_path):
    column, in_json = (LISTED | FURTHER)[name]
    stored = store(pa.table({"x": column}), tmp_path)
    assert stored.manifest.num_samples == 2
    assert stored.sidecar.schema.field("x").type == column.type
    found = stored.sidecar["x"].combine_chunks()
    assert same_values(found, column)
    assert stored.json_records[0]["x"] == in_json


def same_values(one: pa.Array, other: pa.Array) -> bool:
    """True for equal arrays; NaN equals NaN."""
    if pa.types.is_floating(one.type):
        return np.array_equal(one.to_numpy(zero_copy_only=False), other.to_numpy(zero_copy_only=False), equal_nan=True)
    if pa.types.is_list(one.type):
        return same_values(one.flatten(), other.flatten())
    return one.equals(other)


@pytest.mark.parametrize(
    "column",
    [
        not_utf8(),
        pa.ListArray.from_arrays([0, 1, 2], not_utf8()),
        pa.StructArray.from_arrays([not_utf8()], ["s"]),
        pa.MapArray.from_arrays([0, 1, 2], pa.array(["k", "k"]), not_utf8()),
    ],
    ids=["text", "list", "struct", "map"],
)
def test_text_that_is_not_utf8_is_replaced_and_counted_and_the_row_is_kept(column, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        stored = store(pa.table({"x": column}), tmp_path)
    assert stored.manifest.num_samples == 2
    assert "a\ufffdb" in str(stored.sidecar["x"].to_pylist()[0])
    assert "a\ufffdb" in json.dumps(stored.json_records[0]["x"], ensure_ascii=False)
    assert "good" in str(stored.sidecar["x"].to_pylist()[1])
    assert [record.getMessage() for record in caplog.records if "column x: 1 values are not UTF-8" in record.getMessage()]


def test_columns_under_our_names_survive_beside_those_under_the_names_we_would_give_them(tmp_path):
    table = pa.table({name: [f"{name} of the table"] for name in ("key", "source_key", "status", "source_key_2", "sha256")})
    stored = store(table, tmp_path)
    (row,) = stored.sidecar.to_pylist()
    names = {"key": "source_key_3", "status": "source_status", "sha256": "source_sha256"}
    for name in table.column_names:
        assert row[names.get(name, name)] == f"{name} of the table"
    assert row["status"] == "success"
    assert row | {"jpg_offset": None} != row


def test_a_column_without_a_name_is_kept(tmp_path):
    stored = store(pa.table({"": [7]}), tmp_path)
    assert (stored.sidecar[""].to_pylist(), stored.json_records[0][""]) == ([7], 7)
    (tmp_path / "of pandas.csv").write_text(",url,caption\n0,,a dog\n")
    assert ingest(tmp_path / "of pandas.csv", tmp_path / "csv", bytes_column="").sidecar[""].to_pylist() == ["0"]


def test_a_column_that_may_hold_no_null_holds_some_once_a_row_is_taken_down(tmp_path):
    field = pa.field("x", pa.int32(), nullable=False)
    stored = store(pa.table([pa.array([1, 2], pa.int32())], pa.schema([field])), tmp_path)
    (shard,) = stored.manifest.shards
    rewritten = rewrite(stored.storage, [shard], "new-000", removed=[stored.sidecar["key"][0].as_py()])
    assert read_sidecar(stored.storage, rewritten)["x"].to_pylist() == [None, 2]


def two_tables(tmp_path: Any, one: pa.Array, other: pa.Array) -> Stored:
    """A data set of two tables whose columns x differ; None: that table has no such column."""
    for number, column in enumerate((one, other)):
        columns = {"n": [number] * 2} | ({} if column is None else {"x": column})
        write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    return ingest(tmp_path / "*.parquet", tmp_path / "out")


JOINED = {
    "null, then text": (pa.nulls(2), pa.array(["a", "b"]), pa.string(), [None, None, "a", "b"]),
    "int16 and int64": (pa.array([1, 2], pa.int16()), pa.array([2**40, None]), pa.int64(), [1, 2, 2**40, None]),
    "a column that one table lacks": (None, pa.array([1.5, 2.5]), pa.float64(), [None, None, 1.5, 2.5]),
    "integers that no float holds, and floats": (
        pa.array([2**53 + 1, 1]), pa.array([0.5, None]), pa.large_string(), ["9007199254740993", "1", "0.5", None],
    ),
    "numbers and text": (pa.array([1, None]), pa.array(["one", "2"]), pa.large_string(), ["1", None, "one", "2"]),
    "objects of other fields": (
        pa.array([{"a": 1}, None]), pa.array([{"b": "x"}, None]), pa.struct([("a", pa.int64()), ("b", pa.string())]),
        [{"a": 1, "b": None}, None, {"a": None, "b": "x"}, None],
    ),
    "lists and large lists": (
        pa.array([[1], None]), pa.array([[2], []], pa.large_list(pa.int64())), pa.large_list(pa.int64()), [[1], None, [2], []],
    ),
    "dictionaries with other values": (
        pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode(),
        pa.dictionary(pa.int32(), pa.string()), ["a", "b", "c", "a"],
    ),
    "one text, and several": (
        pa.array(["a", None]), pa.array([["b", "c"], []]), pa.list_(pa.string()), [["a"], None, ["b", "c"], []],
    ),
}  # fmt: skip
"""Columns of two tables, and what they are in one sidecar."""


@pytest.mark.parametrize("name", JOINED)
def test_shards_of_tables_that_differ_become_one_shard_with_every_value(name, tmp_path):
    one, other, kind, values = JOINED[name]
    stored = two_tables(tmp_path, one, other)
    record = rewrite(stored.storage, list(stored.manifest.shards), "new-000")
    sidecar = read_sidecar(stored.storage, record)
    assert record.num_samples == 4
    assert sidecar.schema.field("x").type == kind
    assert sidecar["x"].to_pylist() == values


def test_a_category_of_few_values_in_each_of_many_row_groups_stays_readable(tmp_path):
    schema = pa.schema([("x", pa.dictionary(pa.int8(), pa.string())), ("caption", pa.string()), ("url", pa.string())])
    with pq.ParquetWriter(tmp_path / "t.parquet", schema) as writer:
        for letter in "abc":
            values = pa.DictionaryArray.from_arrays(pa.array(range(60), pa.int8()), [f"{letter}{n}" for n in range(60)])
            writer.write_table(pa.table([values, pa.array([""] * 60), pa.array([""] * 60)], schema))
    stored = ingest(tmp_path / "t.parquet", tmp_path / "out", bytes_column="")
    assert stored.sidecar["x"].to_pylist() == [f"{letter}{n}" for letter in "abc" for n in range(60)]


def verdicts(storage: Storage, where: str) -> list[list[str]]:
    manifest = read_manifest(storage)
    rules = check_rules(storage, manifest, Rules(CurateConfig(where=where)))
    return [judge(storage, shard, rules)[0] for shard in manifest.shards]


@pytest.mark.parametrize(
    ("one", "other", "where", "kept"),
    [
        (None, pa.array(["en", "de"]), "x == 'en'", [[False, False], [True, False]]),
        (None, pa.array([3, 5]), "x != 5", [[True, True], [True, False]]),
        (pa.array([2**63 + 5, None], pa.uint64()), pa.array([1, 2]), f"x == {2**63 + 5}", [[True, False], [False, False]]),
        (pa.array([2**53 + 1, None]), pa.array([2**53, None]), f"x == {2**53 + 1}", [[True, False], [False, False]]),
        (counted(pa.date32(), 10_000_000), pa.array([0, 1], pa.date32()), "x > '1970-01-01'", [[True, False], [False, True]]),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", None]), "x == 'b'", [[False, True], [True, False]]),
        (pa.array([decimal.Decimal("0.10"), None]), pa.array([0.2, None]), "x > 0.15", [[False, False], [True, False]]),
        (pa.array(["0.1", "0.9"]), pa.array([0.2, 0.8]), "x.astype('float64') > 0.5", [[False, True], [False, True]]),
        (pa.array([[1], None]), pa.array(["y", "z"], pa.string_view()), "n == 1", [[False, False], [True, True]]),
    ],
)  # fmt: skip
def test_a_condition_holds_over_tables_that_differ(one, other, where, kept, tmp_path):
    stored = two_tables(tmp_path, one, other)
    assert [[not verdict for verdict in shard] for shard in verdicts(stored.storage, where)] == kept


def test_a_condition_that_the_type_of_one_table_forbids_is_refused_with_a_remedy_that_works(tmp_path):
    stored = two_tables(tmp_path, pa.array([0.2, 0.8]), pa.array(["0.1", "0.9"]))
    with pytest.raises(
        InputError, match=r"curate\.where=x > 0\.5: .*\(x: text there; convert it, as in x\.astype\('float64'\)\)"
    ):
        verdicts(stored.storage, "x > 0.5")
    with pytest.raises(InputError, match="name 'nothing' is not defined"):
        verdicts(stored.storage, "nothing > 0.5")


def test_a_selection_of_a_column_of_views_can_be_read_and_made_compact(tmp_path):
    stored = store(pa.table({"x": pa.array(["one", "two", "three"], pa.string_view())}), tmp_path)
    (shard,) = stored.manifest.shards
    chosen: ShardRecord = select(stored.storage, shard, ["", "where", ""])
    (partition,) = stored.manifest.partitions
    commit_choice(stored.storage, stored.manifest, [partition.model_copy(update={"shards": (chosen,)})])
    assert [len(shard) for shard in verdicts(stored.storage, "x == 'one'")] == [2]
    assert read_sidecar(stored.storage, rewrite(stored.storage, [chosen], "new-000"))["x"].to_pylist() == [
        "one",
        "two",
        "three",
    ]


@pytest.mark.parametrize("writer", ["pandas", "polars"])
def test_a_table_of_another_writer_has_the_types_that_it_wrote(writer, tmp_path):
    rows = {"s": ["a", None], "c": ["x", "y"], "l": [["p"], []], "b": [b"\xff", None]}
    if writer == "pandas":
        frame = pd.DataFrame(rows | {"t": pd.to_datetime(["2024-01-01", None])}).astype({"c": "category"})
        table = pa.Table.from_pandas(frame)
    else:
        table = pl.DataFrame(rows | {"t": [0, 1]}, schema_overrides={"c": pl.Categorical, "t": pl.Duration("ns")}).to_arrow()
    pq.write_table(table, tmp_path / "plain.parquet")
    table = pq.read_table(tmp_path / "plain.parquet")
    stored = store(table, tmp_path)
    for field in table.schema:
        assert stored.sidecar.schema.field(field.name).type == field.type
        assert stored.sidecar[field.name].to_pylist() == table[field.name].to_pylist()


def test_rows_that_are_fetched_again_keep_names_types_and_captions(tmp_path):
    columns = {
        "url": ["", None],
        "caption": [["a", "b"], ["c"]],
        "key": pa.array([2**63 + 5, None], pa.uint64()),
        "source_key": pa.array(["x", "y"]).dictionary_encode(),
    }
    first = store(pa.table(columns), tmp_path, bytes_column="")
    assert first.sidecar["reason"].to_pylist() == ["bad_url", "bad_url"]
    assert write_retry_tables(first.storage, first.manifest, ["bad_url"], first.config) == 2
    again = ingest(f"{first.config.output}/retries", first.config.output, bytes_column="")
    (_, shard) = sorted(again.manifest.shards, key=lambda shard: shard in first.manifest.shards, reverse=True)
    sidecar = read_sidecar(again.storage, shard)
    assert sidecar["retry_of"].to_pylist() == first.sidecar["key"].to_pylist()
    for name in ("caption", "source_key", "source_key_2", "image"):
        assert sidecar[name].equals(first.sidecar[name])
    assert write_retry_tables(again.storage, again.manifest, ["bad_url"], again.config) == 2, "of the new failures alone"


def test_a_report_describes_data_of_tables_with_one_caption_and_with_several(tmp_path):
    write_table(pa.table({"caption": ["alone"]}), tmp_path / "1.parquet")
    write_table(pa.table({"caption": [["a", "b"]]}), tmp_path / "2.parquet")
    stored = ingest(tmp_path / "*.parquet", tmp_path / "out")
    samples = _some_samples(stored.storage, stored.manifest)
    assert captions_of(samples["caption"]) == [["alone"], ["a", "b"]]
    assert samples["width"].to_pylist() == [8, 8]

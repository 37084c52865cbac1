"""The input's other columns are joined without loss, under names of their own."""

import logging
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.columns import (
    COLUMNS,
    Extra,
    ExtraRows,
    as_text,
    captions_of,
    free_names,
    holds_captions,
    join_columns,
    split_columns,
    take_rows,
    write_sidecar,
)


@pytest.mark.parametrize(
    ("names", "stored"),
    [
        (["key", "lang"], ["source_key", "lang"]),
        (["source_key", "lang"], ["source_key", "lang"]),
        (["key", "source_key"], ["source_key_2", "source_key"]),
        (["source_key_2", "key", "source_key"], ["source_key_2", "source_key_3", "source_key"]),
        (["key", "url"], ["source_key", "source_url"]),
    ],
)
def test_a_name_of_ours_is_replaced_by_one_that_no_other_column_has(names, stored):
    assert free_names(names, COLUMNS.names) == stored
    assert free_names(stored, COLUMNS.names) == stored, "so that a sidecar's columns keep their names when it is read again"


def test_rows_are_joined_in_their_order_and_rows_without_columns_are_null():
    first, second = (Extra(pa.RecordBatch.from_pylist([{"n": n} for n in numbers])) for numbers in ((0, 1, 2), (3, 4)))
    rows = ExtraRows()
    for row in (first.row(0), first.row(1), None, None, second.row(1), first.row(0)):
        rows.add(row)
    assert rows.table()["n"].to_pylist() == [0, 1, None, None, 4, 0]


def test_no_rows_and_rows_without_other_columns_give_an_empty_table():
    rows = ExtraRows()
    assert rows.table().num_columns == 0
    rows.add(None)
    assert rows.table().num_columns == 0


def test_metadata_of_a_field_stays_and_its_ban_on_nulls_goes():
    schema = pa.schema([pa.field("n", pa.int8(), nullable=False, metadata={"unit": "m"})])
    rows = ExtraRows()
    rows.add(Extra(pa.RecordBatch.from_arrays([pa.array([1], pa.int8())], schema=schema)).row(0))
    rows.add(None)
    field = rows.table().schema.field("n")
    assert (field.metadata, field.nullable) == ({b"unit": b"m"}, True)


def test_a_column_without_a_common_type_is_text_and_says_so_once(caplog):
    chunks = [pa.array([1, None]), pa.array(["x"]), pa.array([{"a": [1.5]}])]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            column = join_columns("column of this test", chunks)
    assert column.to_pylist() == ["1", None, "x", '{"a": [1.5]}']
    assert len(caplog.records) == 1
    assert "column of this test: is stored as text, since its values have no common type: int64, string" in caplog.text


def test_text_of_other_values_is_json_and_floats_keep_what_json_lacks():
    assert as_text(pa.array([float("nan"), 0.1, None])).to_pylist() == ["nan", "0.1", None]
    assert as_text(pa.array([["ü"], None])).to_pylist() == ['["ü"]', None]
    assert as_text(pa.array(["x"]).dictionary_encode()).to_pylist() == ["x"]


def test_a_column_that_parquet_cannot_hold_is_text(tmp_path, caplog):
    table = pa.table({"key": ["a"], "nothing in it": pa.array([{}], pa.struct([])), "n": [1]})
    with caplog.at_level(logging.WARNING):
        write_sidecar(table, tmp_path / "s.parquet")
    assert pq.read_table(tmp_path / "s.parquet").to_pylist() == [{"key": "a", "nothing in it": "{}", "n": 1}]
    assert "column nothing in it: is stored as text, since parquet cannot hold its values" in caplog.text


def test_a_sidecar_is_split_into_its_own_columns_and_the_others():
    table = pa.table({"key": ["a", "b"], "lang": ["en", "de"], "status": ["success", "dropped"]})
    records = [(record, extra.json_record()) for record, extra in split_columns(table)]
    assert records == [({"key": "a", "status": "success"}, {"lang": "en"}), ({"key": "b", "status": "dropped"}, {"lang": "de"})]


def test_captions_are_lists_whatever_the_column_holds():
    assert captions_of(pa.chunked_array([["a", None]])) == [["a"], []]
    assert captions_of(pa.chunked_array([[["a", "b"], None, []]])) == [["a", "b"], [], []]


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.list_(pa.string())])
def test_rows_of_any_type_can_be_taken(kind):
    values = [["a"], ["b"], None] if pa.types.is_list(kind) else ["a", "b", None]
    table = pa.table({"x": pa.array(values, kind)})
    assert take_rows(table, pa.array([0, 2]))["x"].to_pylist() == [values[0], values[2]]
    assert take_rows(table, pa.array([], pa.int64())).num_rows == 0


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (pa.array([Decimal("0.10")]), pa.array([0.5]), [0.1, 0.5]),
        (pa.array([Decimal("0.10")]), pa.array([0.1], pa.float32()), [0.1, 0.10000000149011612]),
        (pa.array([Decimal("12345678901234567.89")]), pa.array([0.5]), ["12345678901234567.89", "0.5"]),
        (pa.array([[Decimal("12345678901234567.89")]]), pa.array([[0.5]]), ['["12345678901234567.89"]', "[0.5]"]),
        (pa.array([["a", "b"], None]), pa.array([3]), [["a", "b"], None, ["3"]]),
        (pa.array([["a", "b"]]), pa.array([[3]]), ['["a", "b"]', "[3]"]),
    ],
)
def test_values_of_two_types_are_joined_without_rounding_and_lists_of_text_stay_lists(one, other, joined):
    assert join_columns("x", [one, other]).to_pylist() == joined


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.string(), True),
        (pa.list_(pa.large_string()), True),
        (pa.dictionary(pa.int8(), pa.string()), True),
        (pa.null(), True),
        (pa.binary(), False),
        (pa.list_(pa.int64()), False),
        (pa.struct({"en": pa.string()}), False),
    ],
)
def test_text_and_lists_of_it_are_captions(kind, text):
    assert holds_captions(kind) == text

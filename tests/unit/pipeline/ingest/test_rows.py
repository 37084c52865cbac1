"""Rows have URL, caption and image as values, and all other columns as they were stored."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.ingest.rows import interpreted, iter_rows, read_range


def table_of(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    return str(tmp_path / "t.parquet")


def test_a_row_range_holds_exactly_its_rows(tmp_path):
    table = table_of(tmp_path, n=range(10))
    assert [row["n"] for batch in read_range(table, 3, 4) for row in batch.to_pylist()] == [3, 4, 5, 6]


def test_a_row_has_its_values_and_the_rest(tmp_path):
    table = table_of(tmp_path, url=["u", None], caption=[["c"], []], image=[b"i", None], n=[1, 2], key=["k", "l"])
    rows = list(iter_rows(table, 0, 2, IngestConfig(bytes_column="image")))
    assert [(row.url, row.caption, row.image) for row in rows] == [("u", ["c"], b"i"), (None, [], b"")]
    assert [row.extra.json_record() for row in rows] == [{"n": 1, "source_key": "k"}, {"n": 2, "source_key": "l"}]


def test_images_of_hugging_faces_data_sets_are_found(tmp_path):
    table = table_of(tmp_path, caption=["c", "d"], image=[{"bytes": b"i", "path": "p"}, None])
    assert [row.image for row in iter_rows(table, 0, 2, IngestConfig(bytes_column="image"))] == [b"i", b""]


def test_values_that_are_not_utf8_are_counted_for_the_whole_range(tmp_path, caplog):
    bad = pa.array([b"\xff", b"v", b"\xfe"], pa.binary()).view(pa.string())
    table = table_of(tmp_path, url=["u"] * 3, caption=["c"] * 3, x=bad)
    with caplog.at_level(logging.WARNING):
        rows = list(iter_rows(table, 0, 3, IngestConfig()))
    assert [row.extra.json_record()["x"] for row in rows] == ["\ufffd", "v", "\ufffd"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{table}, rows 1 to 3 (counted from 1, without a header): column x: 2 values are not UTF-8 text; "
        "U+FFFD stands for the bytes that are not"
    ]


def test_batches_with_equal_dictionaries_share_one(tmp_path):
    table = table_of(tmp_path, url=["u"] * 6, caption=["c"] * 6, x=pa.array(["a", "b"] * 3).dictionary_encode())
    rows = [*iter_rows(table, 0, 2, IngestConfig()), *iter_rows(table, 0, 6, IngestConfig())]
    places = {row.extra.extra.columns.column("x").dictionary.buffers()[2].address for row in rows[2:]}
    assert len(places) == 1


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([b"\xff", b"v"], pa.binary()).view(pa.string()), [b"\xff", "v"]),
        (pa.array([b"\xff", b"v", None]), [b"\xff", "v", None]),
        (pa.array([["a"], None, [b"b"]], pa.list_(pa.binary())), [["a"], None, ["b"]]),
        (pa.array([0.1, None], pa.float32()), [0.1, None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array([2**63], pa.uint64()), [2**63]),
    ],
)
def test_values_that_are_interpreted_are_text_numbers_or_bytes_that_are_no_text(column, values):
    assert interpreted(column) == values

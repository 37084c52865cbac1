"""Small parquet files are read from bytes and from files, whole or by column."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.parquet import read_parquet

TABLE = pa.table({"key": ["a", "b"], "n": [1, 2]})


@pytest.fixture
def data():
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def test_bytes_and_files_give_the_same_table(data):
    assert read_parquet(data) == TABLE
    assert read_parquet(io.BytesIO(data)) == TABLE


def test_only_the_columns_that_are_named_are_read(data):
    assert read_parquet(data, ["n"]) == TABLE.select(["n"])


def test_other_bytes_are_an_error():
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(b"not parquet")

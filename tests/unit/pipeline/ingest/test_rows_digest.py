"""Rows have one hash, however they are cut, and any change gives another."""

import pyarrow as pa
import pytest

from pipeline.ingest.rows_digest import RowsDigest, hash_rows, hash_rows_as_before

TABLE = pa.table(
    {
        "url": ["u", "v", None],
        "caption": pa.array(["a", "b", "a"]).dictionary_encode(),
        "tags": [["x"], None, ["y", "z"]],
        "image": [b"\xff\xd8", None, b""],
        "n": [1, 2, None],
    }
)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_hash_does_not_depend_on_how_rows_are_cut(size):
    digest = RowsDigest()
    for batch in TABLE.to_batches(max_chunksize=size):
        digest.update(batch)
    assert digest.hexdigest() == hash_rows(TABLE)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("url", ["u", "v", ""]),
        ("caption", pa.array(["a", "b", "b"]).dictionary_encode()),
        ("tags", [["x"], [], ["y", "z"]]),
        ("image", [b"\xff\xd8", b"", b""]),
        ("image", [b"\xff\xd8", None, None]),
        ("n", [1, 2, 0]),
    ],
)
def test_a_changed_value_has_another_hash(name, values):
    changed = TABLE.set_column(TABLE.schema.get_field_index(name), name, pa.array(values))
    assert hash_rows(changed) != hash_rows(TABLE)


def test_columns_that_change_their_names_have_another_hash():
    names = {"tags": "labels", "image": "jpg", "caption": "text", "url": "address"}
    for name, other in names.items():
        renamed = TABLE.rename_columns([other if one == name else one for one in TABLE.column_names])
        assert hash_rows(renamed) != hash_rows(TABLE)
        assert (hash_rows_as_before(renamed) == hash_rows_as_before(TABLE)) == (name != "url")


def test_values_that_python_cannot_hold_are_hashed():
    offsets = pa.array([0, 1, 2], pa.int32())
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets.buffers()[1], pa.py_buffer(b"\xffa")])
    table = pa.table({"x": pa.ListArray.from_arrays([0, 1, 2], texts)})
    dates = pa.array([2**31 - 1, None], pa.int32()).view(pa.date32())
    table = table.append_column("y", pa.ListArray.from_arrays([0, 1, 2], dates))
    digest = RowsDigest()
    for batch in table.to_batches(max_chunksize=1):
        digest.update(batch)
    assert digest.hexdigest() == hash_rows(table) != hash_rows(table.slice(0, 1))

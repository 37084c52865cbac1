"""Every Arrow value has a form that JSON can hold; tests/world/test_columns.py holds the forms of each type."""

import datetime
import json

import pyarrow as pa
import pytest

from pipeline.dataset.json_values import is_bytes, is_list, is_text, json_values


def test_values_that_json_has_are_as_they_are():
    for values in (["a", None], [1, None], [True, None], [0.5, None], [None, None], [["a"], [], None], [{"a": "b"}, None]):
        assert json_values(pa.array(values)) == values


def test_dates_and_times_are_as_python_writes_them():
    moment = datetime.datetime(2024, 2, 1, 12, 30, tzinfo=datetime.UTC)
    assert json_values(pa.array([moment])) == [str(moment)]
    assert json_values(pa.array([moment.date(), None])) == [str(moment.date()), None]
    assert json_values(pa.array([moment.time()])) == ["12:30:00"]
    assert json_values(pa.array([datetime.timedelta(days=1, seconds=2)])) == ["1 day, 0:00:02"]


def test_one_value_that_python_cannot_hold_changes_no_other():
    dates = pa.array([0, 10_000_000, None], pa.int32()).view(pa.date32())
    assert json_values(dates) == ["1970-01-01", "29349-01-26", None]
    assert json_values(pa.array([-1, 86_400], pa.int32()).view(pa.time32("s"))) == ["-1 s", "86400 s"]


def test_bytes_are_text_or_an_object_that_cannot_be_mistaken_for_text():
    assert json_values(pa.array(["é".encode(), b"\xff", None])) == ["é", {"base64": "/w=="}, None]


def test_parts_of_nested_arrays_are_their_own_values():
    lists = pa.array([[[1]], None, [], [[2, 3], None]])
    maps = pa.array([[("a", [1])], None, [], [("b", None), ("b", [2])]], pa.map_(pa.string(), pa.list_(pa.int8())))
    for array, values in (
        (lists, [[[1]], None, [], [[2, 3], None]]),
        (maps, [[["a", [1]]], None, [], [["b", None], ["b", [2]]]]),
    ):
        for start in range(5):
            assert json_values(array[start:]) == values[start:]


def test_lists_of_every_kind_keep_their_items_to_themselves():
    values = [[1, 2], None, [3, 4]]
    for kind in (pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2), pa.list_view(pa.int8())):
        array = pa.array(values, kind)
        assert [json_values(array[start:]) for start in range(4)] == [values[start:] for start in range(4)]
    turned = pa.ListViewArray.from_arrays([2, 0, 1], [1, 2, 0], pa.array([1, 2, 3]))
    assert json_values(turned) == [[3], [1, 2], []]


def test_a_list_that_is_null_and_not_empty_hides_items_of_any_type():
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 3, pa.binary(16)))
    lists = pa.LargeListArray.from_arrays([0, 1, 3], uuids, mask=pa.array([False, True]))
    assert json_values(lists) == [["30303030-3030-3030-3030-303030303030"], None]


def test_what_is_neither_is_text():
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["x", "y"])])
    assert json.dumps(json_values(union), allow_nan=False) == '["1", "y"]'
    assert json_values(pa.RunEndEncodedArray.from_arrays([2], ["a"])) == ["a", "a"]


@pytest.mark.parametrize(
    ("test", "kinds"),
    [
        (is_text, [pa.string(), pa.large_string(), pa.string_view()]),
        (is_bytes, [pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view()]),
        (is_list, [pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2), pa.list_view(pa.int8())]),
    ],
)
def test_types_are_of_one_sort(test, kinds):
    others = {is_text, is_bytes, is_list} - {test}
    assert all(test(kind) for kind in kinds)
    assert not any(other(kind) for other in others for kind in kinds)

"""Bytes that are not UTF-8 are replaced at any depth, and all other values stay."""

import pyarrow as pa
import pytest

from pipeline.dataset.valid_text import exact_values, has_unknown_zone, with_valid_text

TEXTS = pa.array([b"\xff", b"v", b"w"], pa.binary()).view(pa.string())

NESTED = {
    "text": (TEXTS, ["\ufffd", "v", "w"]),
    "list": (pa.ListArray.from_arrays(pa.array([0, 1, None, 3]), TEXTS), [["\ufffd"], ["v", "w"], None]),
    "large list": (pa.LargeListArray.from_arrays(pa.array([0, 1, 1, 3], pa.int64()), TEXTS), [["\ufffd"], [], ["v", "w"]]),
    "list of one length": (pa.FixedSizeListArray.from_arrays(TEXTS, 1), [["\ufffd"], ["v"], ["w"]]),
    "list view": (pa.ListViewArray.from_arrays([0, 1], [1, 2], TEXTS), [["\ufffd"], ["v", "w"]]),
    "struct": (
        pa.StructArray.from_arrays([TEXTS, pa.array([1, 2, 3])], ["a", "b"], mask=pa.array([False, True, False])),
        [{"a": "\ufffd", "b": 1}, None, {"a": "w", "b": 3}],
    ),
    "dictionary": (pa.DictionaryArray.from_arrays([0, None, 1], TEXTS), ["\ufffd", None, "v"]),
    "map": (
        pa.MapArray.from_arrays([0, 1, 3], pa.array(["x", "y", "z"]), TEXTS),
        [[("x", "\ufffd")], [("y", "v"), ("z", "w")]],
    ),
    "extension": (pa.ExtensionArray.from_storage(pa.json_(), TEXTS), ["\ufffd", "v", "w"]),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_text_that_is_not_utf8_is_replaced_at_any_depth(name):
    array, values = NESTED[name]
    valid, count = with_valid_text(array)
    assert (valid.type, valid.to_pylist(), count) == (array.type, values, 1)
    rest, _ = with_valid_text(array[1:])
    assert rest.to_pylist() == values[1:]


def test_valid_text_and_values_that_are_no_text_are_the_same_object():
    for array in (pa.array(["é"]), pa.array([1]), pa.array([[b"\xff"]])):
        assert with_valid_text(array) == (array, 0)


def test_a_value_that_its_type_forbids_stays():
    beyond_a_day = pa.array([10**15], pa.int64()).view(pa.time64("ns"))
    valid, count = with_valid_text(beyond_a_day)
    assert valid.equals(beyond_a_day)
    assert count == 0


def test_values_for_hashes_are_pythons_and_where_python_has_none_those_of_json():
    assert exact_values(pa.chunked_array([[1, None]])) == [1, None]
    far = pa.array([10**15], pa.int64()).view(pa.timestamp("ms"))
    assert exact_values(pa.chunked_array([far])) == ["33658-09-27 01:46:40.000"]
    assert exact_values(pa.chunked_array([TEXTS])) == ["\ufffd", "v", "w"]


def test_a_time_zone_that_arrow_does_not_know_is_named():
    zones = (None, "UTC", "+02:00", "Europe/Berlin", "Mars/Olympus")
    assert [has_unknown_zone(pa.timestamp("us", zone)) for zone in zones] == [False] * 4 + [True]
    assert not has_unknown_zone(pa.int64())

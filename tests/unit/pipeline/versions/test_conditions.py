"""Conditions see exact values; tests/world/test_columns.py curates data sets of tables that differ."""

import decimal

import pyarrow as pa
import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.conditions import first_captions, holds, kinds_of_shards, named_columns, to_frame


def test_columns_are_found_by_name_also_within_longer_words():
    assert named_columns(["lang", "a b", "n", "other", ""], "lang == 'en' and `a b` > 1") == ["lang", "a b", "n"]


def test_one_shard_stands_for_each_combination_of_types(data_set):
    storage = open_storage(data_set)
    shards = read_manifest(storage).shards
    assert kinds_of_shards(storage, shards, "shape == 'disc' and width > 1") == {
        (("width", "int32"), ("shape", "string")): shards[0]
    }


def test_values_are_exact_and_missing_ones_equal_nothing():
    big, amount = 2**63 + 5, decimal.Decimal("0.1")
    frame = to_frame(pa.table({"n": pa.array([big, None], pa.uint64()), "d": pa.array([amount, None])}), ["other"])
    assert holds(frame, f"n == {big}", "s", ["n"]).tolist() == [True, False]
    assert holds(frame, "n != 5", "s", ["n"]).tolist() == [True, True]
    assert holds(frame, "d > 0.05", "s", ["d"]).tolist() == [True, False]
    assert holds(frame, "other == 1", "s", ["other"]).tolist() == [False, False]


def test_a_column_that_pandas_cannot_hold_costs_no_other():
    times = pa.array([123_456_789], pa.int64()).view(pa.time64("ns"))
    frame = to_frame(pa.table({"t": times, "n": [1]}))
    assert list(frame.columns) == ["n"]
    with pytest.raises(
        InputError, match=r"curate\.where=t == 1: name 't' is not defined in s; write a condition on the columns t, n"
    ):
        holds(frame, "t == 1", "s", ["t", "n"])


def test_text_among_numbers_is_named_with_its_conversion():
    with pytest.raises(InputError, match=r"\(n: text there; convert it, as in n\.astype\('float64'\)\)"):
        holds(to_frame(pa.table({"n": ["1"]})), "n > 0", "s", ["n"])


@pytest.mark.parametrize(
    ("texts", "works"),
    [
        (["1", "0.5", None], "n.astype('float64') > 0.7"),
        (['"1"', "0.5", None], """n.str.strip('"').astype('float64') > 0.7"""),
        (["1", "n/a", None], "n.astype('str') == '1'"),
    ],
)
def test_the_conversion_in_the_message_works_on_the_values(texts, works):
    frame = to_frame(pa.table({"n": texts}))
    for condition in ("n > 0.7", "n == 1", "n != 1", "1 == n", "n in [1, 2]"):
        with pytest.raises(InputError) as caught:
            holds(frame, condition, "s", ["n"])
        assert works.partition(" ")[0] in str(caught.value)
    assert holds(frame, works, "s", ["n"]).tolist() == [True, False, False]


def test_numbers_compared_with_a_number_in_quotes_are_refused(data_set):
    frame = to_frame(pa.table({"n": [0, 1, None], "none": pa.nulls(3, pa.int64())}))
    for condition in ("n == '0'", "none == '0' or n != '0'"):
        with pytest.raises(
            InputError, match=r"compares n with '0' in s, which none .* convert it, as in n\.astype\('float64'\)"
        ):
            holds(frame, condition, "s", ["n"])
    assert holds(frame, "n != 'x' and none != '1'", "s", ["n"]).tolist() == [True] * 3


def test_a_list_of_one_text_equals_it_and_one_of_several_equals_none():
    frame = to_frame(pa.table({"a b": [["en"], ["p", "q"], ["de"], None, []], "n": [["en"], ["p", "q"], ["de"], None, []]}))
    for name in ("`a b`", "n"):
        assert holds(frame, f"{name} == 'en'", "s", ["n"]).tolist() == [True, False, False, False, False]
        assert holds(frame, f"({name} != 'en') & ({name} != 'p')", "s", ["n"]).tolist() == [False, True, True, True, True]
        assert holds(frame, f"{name} in ['en', 'de']", "s", ["n"]).tolist() == [True, False, True, False, False]
    assert holds(frame, "n.str.len() == 2 or n.str[0] == 'en'", "s", ["n"]).tolist() == [True, True, False, False, False]
    with pytest.raises(InputError, match=r"holds lists; compare one of their values, as in n\.str\[0\] == 'en'"):
        holds(frame, "n == 'en' or n.str.len() == 2", "s", ["n"])


def test_the_first_of_several_captions_stands_for_a_sample():
    assert first_captions(pa.chunked_array([[["a", "b"], [], None]])).to_pylist() == ["a", None, None]
    assert first_captions(pa.chunked_array([["a"]])).to_pylist() == ["a"]

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


def test_the_first_of_several_captions_stands_for_a_sample():
    assert first_captions(pa.chunked_array([[["a", "b"], [], None]])).to_pylist() == ["a", None, None]
    assert first_captions(pa.chunked_array([["a"]])).to_pylist() == ["a"]

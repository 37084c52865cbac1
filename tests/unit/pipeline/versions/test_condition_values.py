"""Values are exact, and are compared with those of their kind alone; tests/world/test_columns.py has tables that differ."""

import datetime
import operator
import uuid
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.versions.condition_values import (
    ConditionError,
    alike,
    calculated,
    compared,
    contained,
    first_captions,
    kind_of,
    text_remedy,
    to_frame,
    true_where,
)
from pipeline.versions.conditions import holds

BIG = 2**63 + 5
DAY = datetime.datetime(1970, 1, 2)
COLUMNS = {
    "price": pa.array([Decimal("19.99"), Decimal("0.10"), None], pa.decimal128(10, 2)),
    "double": pa.array([19.99, 0.1, None]),
    "single": pa.array([0.1, 0.2, None], pa.float32()),
    "half": pa.array([0.1, 0.2, None], pa.float16()),
    "big": pa.array([BIG, 1, None], pa.uint64()),
    "long": pa.array([2**53 + 1, 2**53, None]),
    "byte": pa.array([200, 100, None], pa.uint8()),
    "short": pa.array([60_000, 3, None], pa.uint16()),
    "digits": ["1", "2", None],
    "spelled": ["True", "False", None],
    "flag": [True, None, False],
    "lang": pa.array([b"en", b"de", None]),
    "raw": pa.array([b"\xff", b"a", None]),
    "view": pa.array(["en", "de", None], pa.string_view()),
    "category": pa.array(["en", "de", None]).dictionary_encode(),
    "naive": pa.array([DAY, None, None]),
    "utc": pa.array([DAY, None, None], pa.timestamp("us", "UTC")),
    "berlin": pa.array([DAY, None, None], pa.timestamp("us", "Europe/Berlin")),
    "far": pa.array([10_000_000, 0, None], pa.int32()).cast(pa.date32()),
    "wait": pa.array([datetime.timedelta(hours=1), None, None]),
    "clock": pa.array([datetime.time(12), datetime.time(13, 30, 0, 5), None]),
    "uuid": pa.array([uuid.UUID(int=1).bytes, None, None], pa.binary(16)).cast(pa.uuid()),
    "numbers": [[1], [2, 3], None],
    "struct": [{"a": "x"}, None, None],
    "nulls": pa.nulls(3, pa.int64()),
}


@pytest.fixture(scope="module")
def frame():
    return to_frame(pa.table(COLUMNS))


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("price == 19.99", "0"),
        ("price != 19.99", "12"),
        ("price >= 0.1", "01"),
        ("price.isin([19.99, 5])", "0"),
        ("price * 2 == 39.98", "0"),
        ("price == double", "01"),
        ("price + double > 1", "0"),
        ("price.astype('float64') == 19.99", "0"),
        ("single == 0.1 and half == 0.1", "0"),
        (f"big == {BIG}", "0"),
        ("big + 1 > 2 and big != 5", "0"),
        (f"long == {2**53 + 1}", "0"),
        ("long.astype('str') == '9007199254740993'", "0"),
        ("byte * 2 > 300", "0"),
        ("byte - 150 < 0", "1"),
        ("short * short > 3000000000", "0"),
        ("long * long > 0 and long * 1024 > long", "01"),
        (f"long * long == {(2**53 + 1) ** 2} and -long * long < 0", "0"),
        ("flag == 1 or flag == False", "02"),
        ("lang == 'en' and view == 'en' and category == 'en'", "0"),
        ("lang != 'en'", "12"),
        ("naive == '1970-01-02'", "0"),
        ("utc == '1970-01-02'", "0"),
        ("utc in ['1970-01-02', '1980-01-01']", "0"),
        ("berlin == '1970-01-02 01:00' and berlin == utc", "0"),
        ("berlin > '1970-01-01T23:59Z' and naive < Timestamp('1970-01-03')", "0"),
        ("far > '2020-01-01'", "0"),
        ("wait == '1 hours' and wait > '59 minutes'", "0"),
        ("clock == '12:00'", "0"),
        ("clock > '13:30'", "1"),
        ("uuid == '00000000-0000-0000-0000-000000000001'", "0"),
        ("numbers == 1", "0"),
        ("3 in numbers", "1"),
        ("nulls == 'a' or nulls == 1 or nulls < double", ""),
        ("nulls != 'a'", "012"),
    ],
)
def test_equal_values_are_equal_whatever_their_types(frame, condition, kept):
    answer = holds(frame, condition, "s", list(frame.columns))
    assert "".join(str(row) for row in answer.index[answer]) == kept


@pytest.mark.parametrize(
    ("condition", "remedy", "works", "kept"),
    [
        ("price == '19.99'", r"price\.astype\('float64'\)", "price.astype('float64') == 19.99", "0"),
        ("digits.isin([1, 2])", r"digits\.astype\('float64'\)", "digits.astype('float64').isin([1, 2])", "01"),
        ("byte.isin(['200'])", r"byte\.astype\('float64'\)", "byte.astype('float64') == 200", "0"),
        ("byte != 'x'", r"byte\.astype\('float64'\)", "byte.astype('str') != 'x'", "012"),
        ("digits == byte", r"digits\.astype\('float64'\)", "digits.astype('float64') < byte", "01"),
        ("byte == digits", "byte: numbers there", "byte > digits.astype('float64')", "01"),
        ("flag == 'True'", r"flag\.astype\('str'\) == 'True'", "flag.astype('str') == 'True'", "0"),
        ("spelled == True", "spelled: text there; compare texts", "spelled == 'True'", "0"),
        ("raw == 'a'", "bytes there that are no UTF-8", "raw.notnull()", "01"),
        ("naive > 1970", r"naive\.dt\.year", "naive.dt.year == 1970", "0"),
        ("naive == utc", "only one has a time zone", "naive == '1970-01-02' and utc == '1970-01-02'", "0"),
        ("naive > 'soon'", "'soon', which is not one of them", "naive > '1970'", "0"),
        ("wait > 5", r"wait\.astype\('str'\)", "wait > '5 minutes'", "0"),
        ("numbers == '1'", r"numbers\.astype\('float64'\)", "numbers == 1", "0"),
        ("numbers > 1", r"numbers\.str\[0\]", "numbers.str[0] > 1", "1"),
        ("'a' in numbers", "the lists there hold numbers", "2 in numbers", "1"),
        ("struct == 'x'", r"struct\.astype\('str'\)", "struct.str['a'] == 'x'", "0"),
    ],
)
def test_values_of_two_kinds_are_refused_with_a_remedy_that_works(frame, condition, remedy, works, kept):
    with pytest.raises(InputError, match=remedy):
        holds(frame, condition, "s", list(frame.columns))
    answer = holds(frame, works, "s", list(frame.columns))
    assert "".join(str(row) for row in answer.index[answer]) == kept


def test_kinds_are_those_of_values_and_nulls_have_none(frame):
    assert [kind_of(value) for value in (1, 0.5, Decimal(1), "a", True, None)] == [
        *("numbers", "numbers", "numbers", "text", "true or false", "nulls")
    ]
    assert [kind_of(frame[name]) for name in ("price", "flag", "raw", "numbers", "struct", "nulls")] == [
        *("numbers", "true or false", "bytes", "lists", "other values", "nulls")
    ]


def test_constants_are_compared_as_they_are_and_sides_may_change(frame):
    assert compared(operator.lt, 1, 2, ("1", "2"))
    assert compared(operator.lt, 150, frame["byte"], ("150", "byte")).tolist() == [True, False, False]
    with pytest.raises(ConditionError, match="orders byte and a list"):
        compared(operator.lt, frame["byte"], [1], ("byte", "[1]"))


def test_decimals_meet_numbers_as_they_are_written(frame):
    assert alike(frame["price"], 0.1)[1] == Decimal("0.1")
    assert [side.dtype for side in alike(frame["price"], frame["double"])] == ["float64", "float64"]


def test_integers_have_no_limit(frame):
    assert calculated(operator.mul, frame["long"], frame["long"]).tolist()[:2] == [(2**53 + 1) ** 2, 2**106]
    assert calculated(operator.mul, 1024, frame["byte"]).dtype == "Int64"
    assert calculated(operator.mul, 2**40, 2**40) == 2**80


def test_a_part_of_a_condition_is_true_or_false_and_null_is_false(frame):
    assert true_where(frame["flag"], "flag").tolist() == [True, False, False]
    assert true_where(frame["nulls"], "nulls").tolist() == [False] * 3
    with pytest.raises(ConditionError, match="byte is not true or false for each sample"):
        true_where(frame["byte"], "byte")


def test_a_value_is_sought_in_the_lists_of_each_row():
    column = pd.Series(to_frame(pa.table({"n": [["a", "b"], [], None, ["b"]]}))["n"])
    assert contained("b", column, ("'b'", "n")).tolist() == [True, False, False, True]


def test_a_remedy_for_text_is_empty_without_text(frame):
    assert text_remedy(frame["byte"], "byte") == ""


def test_the_first_of_several_captions_stands_for_a_sample():
    assert first_captions(pa.chunked_array([[["a", "b"], [], None]])).to_pylist() == ["a", None, None]
    assert first_captions(pa.chunked_array([["a"]])).to_pylist() == ["a"]

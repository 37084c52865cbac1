"""Conditions see exact values; tests/world/test_columns.py curates data sets of tables that differ."""

import pyarrow as pa
import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.condition_values import to_frame
from pipeline.versions.conditions import holds, kinds_of_shards, named_columns


def test_columns_are_found_by_name_also_within_longer_words():
    assert named_columns(["lang", "a b", "n", "other", ""], "lang == 'en' and `a b` > 1") == ["lang", "a b", "n"]


def test_one_shard_stands_for_each_combination_of_types(data_set):
    storage = open_storage(data_set)
    shards = read_manifest(storage).shards
    assert kinds_of_shards(storage, shards, "shape == 'disc' and width > 1") == {
        (("width", "int32"), ("shape", "string")): shards[0]
    }


def test_a_column_that_pandas_cannot_hold_costs_no_other():
    times = pa.array([123_456_789], pa.int64()).view(pa.time64("ns"))
    frame = to_frame(pa.table({"t": times, "n": [1]}))
    assert list(frame.columns) == ["n"]
    assert holds(frame, "n == 1", "s", ["t", "n"]).tolist() == [True]
    with pytest.raises(InputError, match=r"the values of t are of a type that cannot be compared, in s; write .* columns t, n"):
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


@pytest.fixture
def frame():
    return to_frame(
        pa.table(
            {
                "lang": ["en", "A&B", None],
                "flag": [True, None, False],
                "m": [1, 2, 3],
                "a b": pa.array([1.5, 2.5, None]),
                "tags": [["en"], ["cat", "dog"], None],
                "day": pa.array([0, 366, None], pa.date32()),
                "meta": [{"a": "x"}, {"a": "y"}, None],
                "key": ["0", "1", "2"],
            }
        )
    )


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("lang == 'en'", "0"),
        ("'en' == lang", "0"),
        ("lang != 'en'", "12"),
        ("lang == ['en', 'A&B'] and m < 2", "0"),
        ("lang not in ['en']", "12"),
        ("lang == 'A&B' & m > 1 | m == 3", "12"),
        ("lang.isnull() or lang.str.contains('e')", "02"),
        ("lang.str.len() > 2", "1"),
        ("lang.str[0] == 'e'", "0"),
        ("lang.str[:2] == 'A&'", "1"),
        ("lang.str.upper().isin(['EN'])", "0"),
        ("0 < m <= 2", "01"),
        ("m.between(2, 3)", "12"),
        ("(m >= 2) & ~(m == 3)", "1"),
        ("not (m == 1 or `a b` > 2)", "2"),
        ("`a b` / m < 1.4", "1"),
        ("m ** 2 % 3 == 1 and -m < -1", "1"),
        ("sqrt(m) > 1.5 and m < inf", "2"),
        ("`a b`.fillna(0).round() == 0", "2"),
        ("flag", "0"),
        ("not flag", "12"),
        ("flag == False", "2"),
        ("flag.astype('str') == 'True'", "0"),
        ("day > '1970-06-01'", "1"),
        ("day == Timestamp('1970-01-01')", "0"),
        ("day.dt.year == 1971", "1"),
        ("'cat' in tags", "1"),
        ("'cat' not in tags", "02"),
        ("tags == 'en' or tags.str.len() == 2", "01"),
        ("meta.str['a'] == 'x'", "0"),
        ("m >\n 1", "12"),
    ],
)
def test_the_syntax_of_pandas_holds_for_the_rows_that_it_says(frame, condition, kept):
    answer = holds(frame, condition, "s", list(frame.columns))
    assert "".join(str(row) for row in answer.index[answer]) == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("index < 1", "name 'index' is not defined"),
        ("columns == 'm'", "name 'columns' is not defined"),
        ("@m > 1", "cannot be read"),
        ("m >", "cannot be read"),
        ("m", "write a comparison"),
        ("1 == 1", "write a comparison"),
        ("lang.str.split('e')", "write a comparison"),
        ("m and lang == 'en'", "m is not true or false"),
        ("lang == None", r"write lang\.isnull\(\) or \.notnull\(\)"),
        ("lang is None", r"write lang\.isnull\(\) or lang\.notnull\(\)"),
        ("'en' in lang", r"write lang\.str\.contains\('en', regex=False\)"),
        ("m == m.max()", r"m\.max\(\) is no method of a condition"),
        ("`a b`.fillna(method='ffill') > 1", "is no method of a condition"),
        ("lang.str.cat() == 'x'", "does not give one value for each sample"),
        ("m.str.len() > 1", "m.str: it holds numbers"),
        ("lang.astype('bool')", "every text is true"),
        ("key.to_pickle('x') == 1", "is no method of a condition"),
        ("key.str.__class__", "is not part of a condition's language"),
        ("key.str.__init__('x')", "is no method of text or dates"),
        ("__import__('os').system('true')", "is no function of a condition"),
        ("(lambda: 1)() == 1", "is not part of a condition's language"),
        ("9 ** 9 ** 9 ** 9 > m", "Numerical result out of range"),
    ],
)
def test_what_looks_at_more_than_one_row_or_does_more_than_compare_is_refused(frame, condition, message):
    with pytest.raises(InputError, match=message):
        holds(frame, condition, "s", list(frame.columns))


def test_a_column_that_this_shard_lacks_is_null_in_every_part():
    frame = to_frame(pa.table({"n": [1]}), ["x"])
    none = (
        "x == 1",
        "x == 'a'",
        "x",
        "x.str.contains('a')",
        "x.dt.year > 2000",
        "x in ['a']",
        "'a' in x",
        "x < n",
        "x.str[0] == 'a'",
    )
    assert [holds(frame, condition, "s", ["x"]).tolist() for condition in none] == [[False]] * len(none)
    assert holds(frame, "x != 'a' and not x > 1 and x.isnull()", "s", ["x"]).tolist() == [True]


def test_a_hint_names_columns_of_the_condition_alone():
    frame = to_frame(pa.table({"t": ["1"], "text": ["2"]}))
    with pytest.raises(InputError) as caught:
        holds(frame, "text.str.nothing() > 1", "s", ["t"])
    assert "t:" not in str(caught.value).replace("text:", "")

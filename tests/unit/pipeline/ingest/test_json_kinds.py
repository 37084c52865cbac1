"""A field of JSON lines has one type, and numbers that become text keep the digits of their lines."""

import json
import math

import orjson
import pytest

from pipeline.ingest import json_kinds
from pipeline.ingest.json_kinds import MANY_FIELDS, Kind, see_objects, settle_columns
from pipeline.ingest.json_lines import DEEPEST


def column(*lines, name="x", of_captions=False):
    rows = [json.loads(line) for line in lines]
    fields: dict[str, Kind] = {}
    see_objects(fields, rows)
    fields[name].of_captions = of_captions
    (found,) = [one for one in settle_columns(fields) if one.name == name]
    return found.array(rows, [line.encode() for line in lines])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1e5", "1e5"),
        ("1.10", "1.10"),
        ("1E+2", "1E+2"),
        ("5", "5"),
        ("-0", "-0"),
        ("-0.0", "-0.0"),
        ("0", "0"),
        ("1e999", "1e999"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("NaN", None),
        ("Infinity", "inf"),
        ("true", "true"),
        ("null", None),
    ],
)
def test_a_number_among_texts_keeps_its_digits(value, text):
    assert column('{"x": "a dog"}', f'{{"y": 1.50, "x": {value}}}').to_pylist() == ["a dog", text]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('{"a": 1.10, "b": [1e5, "1.10"]}', '{"a":1.10,"b":[1e5,"1.10"]}'),
        ("[-0, 2.50, null]", "[-0,2.50,null]"),
        ('{"a": NaN, "b": 1e2}', '{"a":null,"b":1e2}'),
        ('{"a": 123456789012345678901234567890}', '{"a":123456789012345678901234567890}'),
        ("1e5", "1e5"),
        ('"a"', '"a"'),
    ],
)
def test_numbers_within_json_text_keep_their_digits(value, text):
    assert column('{"x": ["a"]}', f'{{"x": {value}}}', '{"x": {"c": 1}}').to_pylist()[1] == text


def test_fractions_among_captions_keep_their_digits_and_elsewhere_they_are_numbers():
    lines = ('{"x": 1.10}', '{"x": 1e5}', '{"x": 5}')
    assert column(*lines, of_captions=True).to_pylist() == ["1.10", "1e5", "5"]
    assert column(*lines[:2], of_captions=True).to_pylist() == ["1.10", "1e5"]
    assert column(*lines).to_pylist() == [1.1, 100000.0, 5.0]


def test_an_object_as_deep_as_a_line_may_be_is_text():
    levels = DEEPEST - 1
    deep = '{"x": ' + '{"a": ' * levels + "1.50" + "}" * levels + "}"
    assert column(deep, '{"x": 1}')[0].as_py() == '{"a":' * levels + "1.50" + "}" * levels


def test_lines_are_parsed_again_only_where_a_number_may_have_other_digits(monkeypatch):
    parsed = []
    monkeypatch.setattr(json_kinds.json, "loads", lambda text, **_: parsed.append(text) or {"x": orjson.Fragment("2.50")})
    rows = [{"x": "a"}, {"x": 7}, {"x": 2.5}, {"x": None}]
    fields: dict[str, Kind] = {}
    see_objects(fields, rows)
    (x,) = settle_columns(fields)
    assert x.array(rows, [b"a", b"b", b"c", b"d"]).to_pylist() == ["a", "7", "2.50", None]
    assert parsed == [b"c"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_time_to_see_ever_new_keys_grows_with_their_number(monkeypatch, depth):
    """Counted in values: every batch of rows used to ask each row for all keys before it."""
    seen = 0
    see = Kind.see

    def counting(kind, values):
        nonlocal seen
        seen += len(values)
        see(kind, values)

    monkeypatch.setattr(Kind, "see", counting)
    fields: dict[str, Kind] = {}
    size = MANY_FIELDS // 10
    for first in range(0, 20 * size, size):
        rows = [{"url": "u", f"k{number}": number} for number in range(first, first + size)]
        for _ in range(depth):
            rows = [{"url": "v", "more": row} for row in rows]
        see_objects(fields, rows)
    assert seen <= 20 * size * 2 * (depth + 1)


def test_fields_have_the_order_of_their_appearance_whether_or_not_rows_are_alike():
    fields: dict[str, Kind] = {}
    see_objects(fields, [{"b": 1, "a": 2}, {"a": 3, "b": 4}])
    see_objects(fields, [{"c": 1, "a": 2}, {"d": None, "a": 3}])
    see_objects(fields, [{}, {}])
    assert list(fields) == ["b", "a", "c", "d"]
    assert (fields["b"].highest, fields["a"].highest, fields["d"].types) == (4, 3, set())
    assert not math.isnan(fields["a"].lowest)

"""Types of JSON lines are settled over all rows, and no value changes for it."""

import json

import pyarrow as pa
import pytest

from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_lines import ROW_TEXT, json_batches, parse_lines, settle


def read(*lines, cut=7, complete=True):
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n"
    blocks = [data[place : place + cut] for place in range(0, len(data), cut)]
    fields = settle(parse_lines(blocks, complete)).fields
    return pa.Table.from_batches(
        list(json_batches(parse_lines([data], complete), fields))
    )  # one block, so that all batches have one schema


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "null", "-5"], pa.int64()),
        (["1", "0.5"], pa.float64()),
        (["0", "18446744073709551615"], pa.uint64()),
        (["-1", "18446744073709551615"], pa.string()),
        (["9007199254740993", "0.5"], pa.string()),
        (["true", "null"], pa.bool_()),
        (['"a"', "null"], pa.string()),
        (["null", "null"], pa.null()),
        (["[]", "[1]", "[0.5, null]"], pa.list_(pa.float64())),
        (['[{"a": 1}]', '[{"b": "x"}]'], pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())]))),
        (['[1, "a"]', "[]"], pa.string()),
        (["{}", "null"], pa.string()),
        (["[]", "{}"], pa.string()),
    ],
)
def test_a_field_has_the_type_that_holds_all_its_values(values, kind):
    assert read(*(f'{{"x": {value}}}' for value in values)).schema.field("x").type == kind


def test_an_object_that_is_a_mapping_is_text():
    assert read(*(f'{{"x": {{"{number}": 1}}}}' for number in range(600))).schema.field("x").type == pa.string()


def test_the_hashed_text_of_a_row_is_its_line():
    table = read('  {"b": 1,  "a": 2} ', "not json", '{"a": 12345678901234567890123}')
    assert table[ROW_TEXT].to_pylist() == [b'{"b": 1,  "a": 2}', b"not json", b'{"a": 12345678901234567890123}']
    assert table["a"].to_pylist() == ["2", None, "12345678901234567890123"]
    assert [error is None for error in table[BAD_ROW].to_pylist()] == [True, False, True]


def test_a_last_line_without_an_end_waits_unless_the_file_is_complete():
    waits = []
    blocks = [b'{"a": 1}\n{"a"', b": 2}"]
    assert [lines.values for lines in parse_lines(blocks, False, 1, lambda: waits.append(1))] == [[{"a": 1}]]
    assert waits == [1]
    assert [line for lines in parse_lines(blocks, True) for line in lines.values] == [{"a": 1}, {"a": 2}]


def test_nan_is_null_and_infinity_a_word_in_a_field_of_text():
    rows = read('{"x": "a"}', '{"x": NaN}', '{"x": Infinity}', '{"x": -Infinity}', '{"x": null}', '{"x": 7}')
    assert rows["x"].to_pylist() == ["a", None, "inf", "-inf", None, "7"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1, "b": {"a": [{"c": 1}, [{"d": 2}]]}}',
        b'{"a": "\\"a\\":", "b" : 1}',
        b'{"a": [1, [2, {"x": {}}]], "\\":": 1}',
        b"{}",
        b'{"b" \t : 1}',
    ],
)
def test_a_line_without_repeated_keys_is_read_whatever_its_strings_hold(line):
    (lines,) = parse_lines([line + b"\n"], complete=True)
    assert lines.values == [json.loads(line)]


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("1234567890123456789", 1234567890123456789),
        ("18446744073709551616", 18446744073709551616),
        ("0.1234567890123456789", 0.1234567890123456789),
        ("0.1234567890123456789, 123456789012345678901", 0.1234567890123456789),
        ("1.5e0000000000000000001", 15.0),
    ],
)
def test_integers_of_many_digits_are_exact_also_beside_fractions_of_many(number, value):
    (lines,) = parse_lines([f'{{"a": [{number}]}}\n{{"b": "1234567890123456789"}}\n'.encode()], complete=True)
    found = lines.values[0]["a"]
    assert found[0] == value
    assert json.dumps(found) == json.dumps(json.loads(f"[{number}]"))


@pytest.mark.parametrize("line", [b' {"a": 1}', b'{"a": 1} ', b'\t{"a": 1}', b'\n{"a": 1}', b'{"a": 1}\n', b'{"a": 1}\x0b'])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_space_around_a_line_is_no_part_of_it(line, place):
    lines = [b'{"b": 2}', b'{"c": 3}']
    lines.insert(place, line)
    (found,) = parse_lines([b"\n".join(lines) + b"\n"], complete=True)
    assert found.texts == [text.strip() for text in lines]
    assert [type(value) for value in found.values] == [dict] * 3 or b"\x0b" in line


LINES = [b'{"a": 1}', b'{"a": "}\\n{"}', b'{"a": [{"b": 1.5}]}']


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"a":1},{"b":2}', b'{"c":[{}', b"{}]}"],
        [b'{"a":"x}', b'{y"}', b'{"b":1}'],
        [b'{"a":1}', b'{"a":1},"b":2}', b'{"c":3}'],
        [b'{"a":"{"}', b'{"a":1},{"b":2}'],
        [b'{"a":1},1}', b'{"a":2}'],
    ],
)
def test_lines_that_are_objects_only_together_are_errors(lines):
    """Each begins with { and ends with }, and some are a valid list of as many objects if they are joined by commas."""
    (found,) = parse_lines([b"\n".join([*lines, b""])], complete=True)
    alone = [parsed.values[0] for line in lines for parsed in parse_lines([line + b"\n"], complete=True)]
    assert [type(value) for value in found.values] == [type(value) for value in alone]
    assert str in map(type, alone)


def test_plain_lines_are_read_again_as_they_were_the_first_time():
    block = b"\n".join([*LINES, b""])
    (first,) = parse_lines([block], complete=True)
    (again,) = parse_lines([block], complete=True, unique_keys=True, is_plain=True)
    assert again == first
    assert first.plain == first.values


@pytest.mark.parametrize(
    "changed", [b'{"a": 1},{"a": 2}', b'{"a": [1', b"", b"[1]", b'{"a": 1}}', b'{"a": 12345678901234567890123}, {}']
)
def test_a_file_that_was_changed_between_the_two_readings_is_read_line_by_line(changed):
    block = b"\n".join([*LINES, changed, b""])
    (again,) = parse_lines([block], complete=True, unique_keys=True, is_plain=True)
    (alone,) = parse_lines([block], complete=True)
    assert again == alone


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'{"a": 1, "a": 1}', "a"),
        (b'{"a": 1, "a" : 2}', "a"),
        (b'{"x": {"\xc3\xa4": 1, "\xc3\xa4": 2}}', "ä"),
        (b'{"x": [1, [{"b": 1, "b": 2}]]}', "b"),
        (b'{"a": NaN, "a": 1}', "a"),
        (b'{"a": 12345678901234567890123, "a": 1}', "a"),
    ],
)
def test_a_line_with_a_key_twice_is_an_error(line, key):
    (lines,) = parse_lines([b'{"a": 1}\n' + line + b"\n"], complete=True)
    assert lines.values == [{"a": 1}, f'line 2: has the key "{key}" twice']

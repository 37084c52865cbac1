"""A json member's values are what it says once; captions are its texts and numbers."""

import pytest

from pipeline.dataset.json_members import caption_texts, parse_member


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"a":' * 200_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_object_that_can_be_read_is_none(content):
    assert parse_member(content) is None


def test_a_name_with_several_values_has_none():
    found = parse_member(b'{"a": 1, "b": 2, "a": 3, "b": 2, "c": {"d": 1, "d": 2}}')
    assert (found.values, found.repeated) == ({"b": 2, "c": {"d": 2}}, {"a"})
    assert parse_member(b'{"a": {"d": 1, "d": 2}, "b": 1}').repeated == frozenset()


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a", ["a"]),
        (7, ["7"]),
        (["a", 7, None, "b", " ", float("nan")], ["a", "7", "b"]),
        (None, []),
        (["a", float("inf")], ["a"]),
        (True, None),
        (["a", {"b": 1}], None),
        ([["a"]], None),
    ],
)
def test_captions_are_texts_and_numbers(value, texts):
    assert caption_texts(value) == texts

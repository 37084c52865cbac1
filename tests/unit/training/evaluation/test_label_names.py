"""Labels find their names by pairs, by name, or by position, in this order. tests/world/test_labels.py has more."""

import pytest

from pipeline.errors import ConfigError
from training.evaluation.class_list import parse_class_list
from training.evaluation.label_names import as_integer, identifiers, name_labels, normalize, some


def named(text, labels, kind):
    return name_labels(parse_class_list(text, "f"), labels, kind, "key=x")


def test_names_are_compared_without_case_separators_and_unicode_forms():
    assert normalize("Golden_Retriever") == normalize("golden retriever") == normalize("GOLDEN-RETRIEVER")
    assert normalize("cafe\u0301") == normalize("Café")
    assert normalize("007") == normalize("7") == normalize("7.0")
    assert normalize("-1") != normalize("1")
    assert (as_integer("-1"), as_integer(" 7.0 ")) == (-1, 7)


def test_folders_that_differ_only_in_what_is_ignored_are_matched_exactly_or_not_at_all():
    assert named("cat\nCat\n", ["Cat", "cat"], "folder").names == {"Cat": "Cat", "cat": "cat"}
    assert named("Cat\ttom\ncat\ttim\n", ["Cat", "cat"], "folder").names == {"Cat": "tom", "cat": "tim"}


def test_text_labels_of_a_column_are_never_matched_by_position():
    assert named("Cat\nDog\nemu\n", ["cat", "dog"], "text").names == {"cat": "Cat", "dog": "Dog", "emu": "emu"}
    assert named("a\nb\n", ["cat", "dog"], "text").names == {"a": "a", "b": "b"}, "which read_classes refuses"


def test_a_file_that_can_be_read_in_two_ways_is_refused():
    with pytest.raises(ConfigError, match="may call 1 'b' or 'c'"):
        named('{"0": ["0", "a"], "1": ["10", "b"], "10": ["1", "c"]}', ["0", "1", "10"], "folder")


def test_numbers_are_lines_and_every_name_without_a_label_stays_a_class():
    assert named("a\nb\nc\n", ["0", "02"], "number").names == {"0": "a", "1": "b", "02": "c"}
    assert named("a\nb\nc\n", ["0", "02"], "number").guess == ""


def test_a_position_is_a_guess():
    found = named("a\nb\n", ["x", "y"], "folder")
    assert found.names == {"x": "a", "y": "b"}
    assert found.guess == "class names were matched with the folders by position: x is 'a', ..., y is 'b'"


def test_identifiers_are_told_from_names():
    assert identifiers(["1", "02", "3.0"]) == "numbers"
    assert identifiers(["n01440764", "n01443537"]) == "WordNet ids"
    assert identifiers(["n01440764", "cat"]) == ""


def test_a_few_names_stand_for_many():
    assert some(["a", "b"]) == "a, b"
    assert some([*"abcdef"]) == "a, b, c and 3 more"


def test_the_remedy_for_names_that_begin_with_numbers_works():
    lines = ["1 dollar", "5 dollars"]
    with pytest.raises(ConfigError, match="a tab and the name"):
        name_labels(parse_class_list("\n".join(lines), "f"), ["0", "1"], "number", "i")
    with_tabs = "".join(f"{number}\t{name}\n" for number, name in enumerate(lines))
    assert name_labels(parse_class_list(with_tabs, "f"), ["0", "1"], "number", "i").names == {"0": "1 dollar", "1": "5 dollars"}

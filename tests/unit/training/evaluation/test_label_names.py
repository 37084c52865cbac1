"""Labels find their names by pairs, by name, or by position, in this order. tests/world/test_labels.py has more."""

import json

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


@pytest.mark.parametrize(
    "text", ["Species\n0,cat\n1,dog\n", "0,cat\n1,dog\n(2 classes)\n", "0,cat\n1,\n2,cow\n", "x\n0 cat\n1 dog\n"]
)
def test_a_line_that_is_not_numbered_as_the_others_shifts_no_names(text):
    with pytest.raises(ConfigError, match=r"most of its lines begin with a number that counts them, but .* does not"):
        named(text, ["0", "1"], "number")


def test_names_beyond_the_last_label_are_said_since_a_header_may_have_shifted_them():
    found = named("Species\ncat\ndog\n", ["0", "1"], "number")
    assert found.guess == "labels were matched with the lines of the names by number: 0 is 'Species', ..., 1 is 'cat'"


def test_a_number_that_a_space_sets_apart_may_be_part_of_the_name_which_is_said():
    found = named("0 spots\n1 spot\n", ["0", "1"], "number")
    assert found.guess == "numbers were taken for labels, not for parts of the names: 0 is 'spots', ..., 1 is 'spot'"
    assert named("0\tspots\n1\tspot\n", ["0", "1"], "number").guess == ""


def test_two_names_for_a_label_are_refused():
    with pytest.raises(ConfigError, match="gives one label several names; keep one of them"):
        named('{"0": ["cat", "kitty"], "1": ["dog", "puppy"]}', ["0", "1"], "number")


def test_the_json_list_that_is_a_remedy_for_names_with_commas_and_numbers_works():
    names = ["Audi, TT, 2012", "BMW, M3, 2008", "Fiat, 500, 2010"]
    with pytest.raises(ConfigError, match="write a JSON list if these are names"):
        named("\n".join(names), ["0", "1", "2"], "number")
    assert list(named(json.dumps(names), ["0", "1", "2"], "number").names.values()) == names


def test_names_that_are_the_folders_but_for_separators_may_hold_numbers():
    folders = ["000.Some_Bird_0", "001.Some_Bird_1"]
    for names in (["000.Some Bird 0", "001.Some Bird 1"], ["001.Some Bird 1", "000.Some Bird 0"]):
        assert named("\n".join(names), folders, "folder").names == dict(zip(folders, sorted(names), strict=True))

"""A names file is parsed into every reading that it allows. tests/world/test_labels.py has the forms that people use."""

import pytest

from pipeline.errors import ConfigError
from training.evaluation.class_list import is_header, parse_class_list, parse_prompts, plain_lines, refuse_more_than_names


def test_a_list_has_names_and_no_pairs_whatever_is_in_them():
    found = parse_class_list('["a,b", "c\\td", "e: f"]', "f")
    assert (found.names, found.readings, found.explicit) == (("a,b", "c\td", "e: f"), (), False)


def test_lines_with_separators_have_pairs_in_both_directions_without_the_header():
    found = parse_class_list('label,name\nn1,"a, b"\nn2,c\n', "f")
    assert found.readings == ((("n1", "a, b"), ("n2", "c")), (("a, b", "n1"), ("c", "n2")))
    assert found.names == ("label,name", 'n1,"a, b"', "n2,c")
    assert parse_class_list("n1 a b\nn2 c\n", "f").spaced == (("n1", "a b"), ("n2", "c"))
    tabbed = parse_class_list("n1\ta\nn2\tb c\n", "f")
    assert (tabbed.names, tabbed.explicit) == ((), True)


def test_a_label_with_two_names_is_no_label():
    assert parse_class_list("a,x\na,y\n", "f").readings == ((), (("x", "a"), ("y", "a")))


def test_wrapped_lists_and_mappings_are_unwrapped():
    assert parse_class_list('{"names": ["a", "b"]}', "f").names == ("a", "b")
    assert parse_class_list('{"model": "x", "id2label": {"0": "a"}}', "f").readings[0] == (("0", "a"),)
    assert parse_class_list('{"0": ["n1", "a"]}', "f").readings == ((("0", "a"),), (("n1", "a"),))
    with pytest.raises(ConfigError, match="must be a list of names or map each label"):
        parse_class_list('{"cifar10": ["a", "b"], "mnist": ["0", "1", "2"]}', "f")


def test_python_is_read_as_data_and_never_run(tmp_path):
    assert parse_class_list('NAMES = ["a", "b"]\n', "f").names == ("a", "b")
    with pytest.raises(ConfigError, match="is Python code with 0 lists"):
        parse_class_list(f'[open("{tmp_path}/x", "w")]', "f")
    assert not (tmp_path / "x").exists()


def test_words_for_columns_are_told_from_classes():
    assert is_header("Class Name")
    assert is_header("label", "name")
    assert not is_header("cat")
    assert not is_header("label", "cat")


def test_prompts_are_lines_or_a_list():
    assert parse_prompts('{"imagenet": ["a {}", "b {}"]}', "f") == ("a {}", "b {}")
    assert parse_prompts("{} in the wild\na {}", "f") == ("{} in the wild", "a {}")
    assert parse_prompts("", "f") == ()
    with pytest.raises(ConfigError, match="must be a list of prompts"):
        parse_prompts('[["a {}"]]', "f")


def test_an_endless_line_is_refused():
    with pytest.raises(ConfigError, match="line 1 has 3,000 characters"):
        plain_lines("x" * 3000, "f")


@pytest.mark.parametrize(
    "text",
    [
        "0|tench\n1|goldfish\n",
        "0 -> tench\n1 -> goldfish\n",
        "0 - tench\n1 - goldfish\n",
        "0 'tench',\n1 'goldfish',\n",
        "ClassId,SignName\n0,tench\n1,goldfish\n",
    ],
)
def test_what_stands_between_label_and_name_is_not_part_of_the_name(text):
    given = parse_class_list(text, "names.txt")
    assert (("0", "tench"), ("1", "goldfish")) in (*given.readings, given.spaced)


@pytest.mark.parametrize("text", ["none,nothing\n0,zero\n1,one\n", "background\tnone\n1\tcat\n2\tdog\n"])
def test_a_first_line_whose_label_is_a_word_is_no_header(text):
    assert [len(reading) for reading in parse_class_list(text, "names.txt").readings] == [3, 3]


@pytest.mark.parametrize("line", ["f'a photo of a {}.'", "'a {}',", "a photo of a {{}}.", "* a photo of a {}."])
def test_a_line_that_is_more_than_a_prompt_is_refused(line):
    with pytest.raises(ConfigError, match="more than a prompt"):
        parse_prompts(f"{line}\na bad photo of a {{}}.\n", "prompts.txt")


def test_a_prompt_may_hold_quotes():
    assert parse_prompts('"{}" on a sign\na {}, said "fine"\n', "prompts.txt") == ('"{}" on a sign', 'a {}, said "fine"')


@pytest.mark.parametrize(
    "names",
    [
        ("1 kit_fox", "2 English_setter"),
        ("n02119789 kit_fox", "n02100735 setter"),
        ("cat 1", "dog 0"),
        ("tench,", "goldfish"),
        ("* tench", "* goldfish"),
        ("'0': 'tench'", "'1': 'goldfish'"),
        ("class 0: cat", "class 1: dog"),
        ("-> cat", "-> dog"),
    ],
)
def test_names_with_something_around_them_are_refused(names):
    with pytest.raises(ConfigError, match="is more than the name of a class; write lines of the label, a tab and the name"):
        refuse_more_than_names(names, "names.txt")


@pytest.mark.parametrize(
    "names",
    [("grade 1", "grade 2"), ("747-400", "A320"), ("jack-o'-lantern", "St. Bernard"), ("2012 Audi A5", "Boeing 747"), ("3",)],
)
def test_names_may_hold_numbers_and_signs(names):
    refuse_more_than_names(names, "names.txt")


@pytest.mark.parametrize("line", ["1. a photo of a {}.", "a photo of a {}.,"])
def test_a_numbered_prompt_and_one_with_a_comma_are_refused(line):
    with pytest.raises(ConfigError, match="more than a prompt"):
        parse_prompts(f"{line}\n", "prompts.txt")

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


@pytest.mark.parametrize(
    "line",
    [
        *(
            "f'a photo of a {}.'",
            "'a {}',",
            "a photo of a {{}}.",
            "* a photo of a {}.",
            "a photo of a ${c}.",
            r"a photo of a {}.\n",
        ),
        *("«a {}»", "`a {}`", "a photo of a {}.;0.5", "a {} # comment", "a {}<br>"),
    ],
)
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
        ("0，cat", "1，dog"),
        ("0：cat", "1：dog"),
        ("n01、cat", "n02、dog"),
        ("cat/", "dog/"),
        ("./cat", "./dog"),
        ("drwxr-xr-x 2 u g 4096 Jan 1 00:00 cat", "drwxr-xr-x 2 u g 4096 Jan 1 00:00 dog"),
        ("<li>cat</li>", "<li>dog</li>"),
        ("cat<br>", "dog<br />"),
        ("«cat»", "«dog»"),
        ("`cat`", "`dog`"),
        ("cat # a", "dog # b"),
        (r"cat\n", r"dog\n"),
    ],
)
def test_names_with_something_around_them_are_refused(names):
    with pytest.raises(ConfigError, match="is more than the name of a class; write lines of the label, a tab and the name"):
        refuse_more_than_names(names, "names.txt")


@pytest.mark.parametrize(
    "names",
    [
        *(
            ("grade 1", "grade 2"),
            ("747-400", "A320"),
            ("jack-o'-lantern", "St. Bernard"),
            ("2012 Audi A5", "Boeing 747"),
            ("3",),
        ),
        *(("金鱼，鲫鱼", "鲨鱼，白鲨"), ("C# code", "F# code"), ("AC/DC", "hot/cold"), ("<3", "heart")),
    ],
)
def test_names_may_hold_numbers_and_signs(names):
    refuse_more_than_names(names, "names.txt")


@pytest.mark.parametrize("line", ["1. a photo of a {}.", "a photo of a {}.,"])
def test_a_numbered_prompt_and_one_with_a_comma_are_refused(line):
    with pytest.raises(ConfigError, match="more than a prompt"):
        parse_prompts(f"{line}\n", "prompts.txt")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"tench, Tinca tinca"\ngoldfish\n', ("tench, Tinca tinca", "goldfish")),
        ('"12"" vinyl record"\ncat\n', ('12" vinyl record', "cat")),
        ('"12"" vinyl record"\n"cat"\n', ('12" vinyl record', "cat")),
        ("\u201ccat\u201d\n\u2018dog\u2019\n", ("cat", "dog")),
        ("sep=;\ncat\ndog\n", ("cat", "dog")),
    ],
)
def test_what_a_table_or_a_word_processor_writes_around_a_name_is_removed(text, names):
    assert parse_class_list(text, "names.txt").names == names


@pytest.mark.parametrize("text", ['"cat"\n"dog"\ncow\n', "'cat'\ndog\n", "name\n\u201ccat\u201d\ndog\n"])
def test_quotes_around_some_lines_that_no_table_needs_are_refused(text):
    with pytest.raises(ConfigError, match="is in quotes, but other lines are not; remove the quotes, or write a JSON list"):
        parse_class_list(text, "names.txt")


@pytest.mark.parametrize(
    "text",
    [",name\n0,cat\n1,dog\n", '"","name"\n"0","cat"\n"1","dog"\n', "name\n0;cat\n1;dog\n", "sep=;\nid;name\n0;cat\n1;dog\n"],
)
def test_a_header_that_leaves_a_column_without_a_name_is_no_pair(text):
    assert (("0", "cat"), ("1", "dog")) in parse_class_list(text, "names.txt").readings


def test_a_line_without_the_tab_of_the_others_is_refused():
    with pytest.raises(ConfigError, match="'name' has no tab, but other lines have one; remove it if it is a header"):
        parse_class_list("\tname\n0\tcat\n1\tdog\n", "names.txt")


@pytest.mark.parametrize("use", ["names = sorted(names)", "names.reverse()", "names[0] = 'kitten'", "names += ['cow']"])
def test_python_that_may_change_its_list_is_refused(use):
    with pytest.raises(ConfigError, match=r"line 2 uses the list \(.*\), which is not run; write the list as it should be"):
        parse_class_list(f"names = ['dog', 'cat']\n{use}\n", "names.py")
    assert parse_class_list("names = ['dog', 'cat']\ncount = 2\n", "names.py").names == ("dog", "cat")


def test_two_words_for_a_label_are_a_label_and_its_name_only_if_the_first_may_be_a_label():
    assert parse_class_list('{"0": ["cat", "kitty"], "1": ["dog", "puppy"]}', "f").readings == (
        (),
        (("cat", "kitty"), ("dog", "puppy")),
    )


def test_marks_of_direction_around_a_name_are_removed_in_every_form():
    marked = "\u202acat\u202c"
    assert parse_class_list(f"{marked}\ndog\n", "f").names == ("cat", "dog")
    assert parse_class_list(f'["{marked}", "dog"]', "f").names == ("cat", "dog")
    assert parse_class_list(f"0\t{marked}\n1\tdog\n", "f").readings[0] == (("0", "cat"), ("1", "dog"))


@pytest.mark.parametrize("names", [("cat (0)", "dog (1)"), ("cat 1", "dog 2"), ("cat:0", "dog:1"), ("cat [0]", "dog [1]")])
def test_a_number_after_each_name_that_counts_them_is_no_part_of_the_names(names):
    for listed in (False, True):
        with pytest.raises(ConfigError, match="is more than the name of a class"):
            refuse_more_than_names(names, "names.txt", listed)


@pytest.mark.parametrize(
    "names", [("20 km/h", "30 km/h"), ("Audi TT 2012", "BMW M3 2008"), ("Audi, TT, 2012", "BMW, M3, 2008")]
)
def test_numbers_in_names_are_refused_in_lines_and_taken_in_a_list_as_the_message_says(names):
    with pytest.raises(ConfigError, match="or a JSON list if these are the names"):
        refuse_more_than_names(names, "names.txt")
    refuse_more_than_names(names, "names.txt", listed=True)


@pytest.mark.parametrize(
    "text", ["0,a photo of a {}.\n", "1\ta photo of a {}.\n", "0 a {}\n1 the {}\n", "(1) a {}\n", "a) a {}\n", "- a {}\n"]
)
def test_a_number_or_a_mark_before_a_prompt_never_gets_into_it(text):
    with pytest.raises(ConfigError, match="more than a prompt; write only its text, one prompt a line, or a JSON list"):
        parse_prompts(text, "prompts.txt")


def test_quotes_of_a_word_processor_around_every_prompt_are_removed():
    assert parse_prompts("\u201ca photo of a {}.\u201d\n\u201cart of the {}.\u201d\n", "f") == (
        "a photo of a {}.",
        "art of the {}.",
    )
    assert parse_prompts("3D render of a {}.\na {}\n", "f") == ("3D render of a {}.", "a {}")


YAML = ["nc: 2\nnames: ['cat', 'dog']\n", "train: a\nval: b\nnc: 4\nnames: [a, b, c, d]\n", "names:\n  0: a\n"]


@pytest.mark.parametrize("text", YAML)
def test_a_yaml_file_of_a_detector_is_no_list_of_names(text):
    with pytest.raises(ConfigError, match=r"is code \((nc|names)"):
        parse_class_list(text, "data.yaml")

"""The quotes of a tsv are read in one way in the whole file."""

import os

import pytest

from pipeline.ingest.text_source import open_source
from pipeline.ingest.tsv_quotes import quotes_of_tsv

HEADER = "url\tcaption\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + "u\tone\n", None),
        (HEADER + 'u\t5" screen\n', None),
        ('"url"\t"caption"\nu\t"one"\n', True),
        ('url\t"caption"\nu\t"one"\n', True),
        (HEADER + 'u\t"one"\n', False),
        (HEADER + 'u\t"one ""1"""\nv\t12" x 8"\n', True),
        (HEADER + 'u\t"one ""1"""\nv\t"#2"\n', True),
        (HEADER + 'u\t"one ""1"""\nv\t"open\n', False),
        (HEADER + 'u\t"two\nlines"\n', True),
        (HEADER + 'u\t"two\nv\trows"\n', False),
        (HEADER + 'u\t"two\n\nv\trows"\n', False),
        (HEADER + 'u\t"a\tb\nc\td"\n', True),
        (HEADER + 'u\t"two\n\nparagraphs"\n', True),
        (HEADER + '"u\tone"\nv\ttwo\n', False),
        (HEADER + '"u\tone"\nv"\ttwo\n', False),
        (HEADER + 'u\t"a\ttab"\n', True),
        (HEADER + 'u\t""\nv\tone\n', True),
        (HEADER + 'u\t""\nv\t"one"\n', False),
        (HEADER + 'u\t"one" and more\n', False),
        (HEADER + 'u\t"one ""1"""\nv\t"a\rb"\n', True),
        (HEADER + 'u\t"Red, round"\nv\tone\n', False),
        (HEADER + 'u\t"Red, round"\nv\t""\n', False),
        (HEADER + 'u\t"Red, round"\nv\tone, two\n', False),
        (HEADER + 'u\tone, two\nv\t"Red, round"\n', False),
        (HEADER + 'u\t"Red, round"\nv\t"one"\n', False),
        (HEADER + 'u\t"Red, round"\nv\t12" x 8\n', False),
        (HEADER + 'u\t"Red, round"\nv\t"two ""2"""\n', True),
        (HEADER + 'u\t"Red, round"\nv\t12" x 8, or\n', False),
        (HEADER + 'u\t"Red, round"\nv\t12" x 8"\nw\ta, b\n', False),
        (HEADER + '//h/1\t"a\n//h/2\tb\nragged\n//h/3\tTV 15"\n', False),
        (HEADER + '//h/1\t"a\n\n//h/2\tTV 15"\n//h/3\t"two ""1"""\n', False),
        (HEADER + '//h/1\t"a table:\n1\t2\n3\t4"\n', True),
        (HEADER + '//h/1\t"a table:\n1\t2"\n//h/2\tTV 15" x 3"\n', True),
    ],
)
def test_quotes_are_quotes_if_the_whole_file_is_quoted_consistently(tmp_path, text, expected):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    os.utime(path, (1, 1))
    assert quotes_of_tsv(open_source(str(path)), 0, text.encode(), True) is expected


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize(
    ("lines", "quoted"),
    [
        (['u\t"Red, round"', "v\tone"], True),
        (['u\t"Red, round"', 'v\t""'], True),
        (['u\t"Red, round"', 'v\t12" x 8'], True),
        (['u\t"Red, round"', "v\tone, two"], False),
        (["u\tone, two", 'v\t"Red, round"'], False),
        (['u\t"Red, round"', 'v\t"one"'], False),
    ],
)
def test_quotes_around_all_commas_are_a_spreadsheets_if_the_line_ends_are(tmp_path, lines, quoted, end, caplog):
    path = tmp_path / "t.tsv"
    text = end.join(["url\tcaption", *lines, ""])
    path.write_bytes(text.encode())
    os.utime(path, (1, 1))
    assert quotes_of_tsv(open_source(str(path)), 0, text.encode(), True) is (quoted and end != "\n")
    said = (
        "dropped, as its line ends are" if end != "\n" else "stay in the text; if they do not belong to it, save the table as"
    )
    assert (said in caplog.text) == quoted


def test_without_a_header_the_first_line_must_be_quoted_as_a_whole(tmp_path):
    path = tmp_path / "t.tsv"
    for text, expected in (('"u"\t"one"\t5\n', True), ('u\t"one"\t5\n', False)):
        path.write_text(text)
        assert quotes_of_tsv(open_source(str(path)), 0, text.encode(), False) is expected

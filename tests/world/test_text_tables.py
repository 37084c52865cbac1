"""Text tables are read as they are written: as many rows as lines, each value as it stands, or a refusal that says where.

The inputs are those that people have reported (tests/world/README.md).
"""

import gzip
import json
import os
from decimal import Decimal

import pytest

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.plan import plan_ingest
from pipeline.ingest.rows import read_range
from pipeline.ingest.table_files import say_what_is_skipped


def put(path, data, rested=True):
    """Write a table that nobody has written to for two hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    if rested:
        before = path.stat().st_mtime - 7200
        os.utime(path, (before, before))
    return path


def ingested(source, output, **options):
    """The rows that a run would ingest, as its workers read them."""
    plan = plan_ingest(IngestConfig(input=str(source), output=str(output), **options))
    batches = (batch for spec in plan.partitions for batch in read_range(spec.rows_path, spec.rows_first, spec.num_rows))
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture
def rows(tmp_path):
    def read(name, data, rested=True, **options):
        return ingested(put(tmp_path / name, data, rested), tmp_path / "out", **options)

    return read


def captions(table):
    return [row["caption"] for row in table]


TSV = 'url\tcaption\nu1\tone\nu2\t"two" of them\nu3\tthree\nu4\tfour\nu5\t"five\nu6\tsix\n'


@pytest.mark.parametrize("rested", [True, False])
def test_captions_of_a_tsv_that_begin_with_a_quote_swallow_no_line(rows, rested):
    assert captions(rows("t.tsv", TSV, rested)) == ["one", '"two" of them', "three", "four", '"five', "six"]


@pytest.mark.parametrize("rested", [True, False])
@pytest.mark.parametrize(
    "lines", [['"a', "b", 'c"'], ['"a', "b", '"'], ['"', "b", "c"], ["a", 'b "c"', '"'], ['"a"', "b", "c"], ['a""', '""b', "c"]]
)
def test_quotes_of_a_tsv_are_characters_wherever_they_stand(rows, lines, rested):
    text = "url\tcaption\n" + "".join(f"u{n}\t{caption}\n" for n, caption in enumerate(lines))
    assert captions(rows("t.tsv", text, rested)) == lines


def test_a_tsv_that_is_quoted_consistently_is_unquoted(rows):
    minimal = 'url\tcaption\nu1\t"he said ""hi"""\nu2\tplain\nu3\t"two\nlines"\nu4\t"a\ttab"\n'
    assert captions(rows("t.tsv", minimal)) == ['he said "hi"', "plain", "two\nlines", "a\ttab"]
    everything = '"url"\t"caption"\n"u1"\t"one"\n"u2"\t"two ""2"""\n'
    assert captions(rows("u.tsv", everything)) == ["one", 'two "2"']


def typed(first, second, count=1500):
    line = {"url": "u", "caption": "c" * 900}
    return "".join(json.dumps(line | first) + "\n" for _ in range(count)) + json.dumps(line | second) + "\n"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"x": None}, {"x": "text"}, (None, "text")),
        ({}, {"x": 5}, (None, 5)),
        ({"x": 1}, {"x": 0.5}, (1.0, 0.5)),
        ({"x": {"a": 1}}, {"x": {"b": "t"}}, ({"a": 1, "b": None}, {"a": None, "b": "t"})),
        ({"x": {"a": 1}}, {"x": "text"}, ('{"a":1}', '"text"')),
        ({"x": []}, {"x": ["a"]}, ([], ["a"])),
        ({"x": {}}, {"x": {}}, ("{}", "{}")),
        ({"x": True}, {"x": "yes"}, ("true", "yes")),
    ],
)
def test_types_of_a_jsonl_are_settled_over_the_whole_file(rows, first, second, expected):
    table = rows("t.jsonl", typed(first, second))
    assert len(table) == 1501
    assert (table[0]["x"], table[-1]["x"]) == expected


@pytest.mark.parametrize("caption", ["2020-01-01", "2020-01-01T10:00:00Z", "12:30", "NULL", "1e5", "007", "true", " a "])
def test_strings_of_a_jsonl_stay_strings(rows, caption):
    assert captions(rows("t.jsonl", json.dumps({"url": "u", "caption": caption}) + "\n")) == [caption]


def test_long_lines_are_read(rows):
    long = "x" * (9 << 20)
    assert captions(rows("t.jsonl", json.dumps({"url": "u", "caption": long}) + "\n" + '{"url": "v", "caption": "b"}\n')) == [
        long,
        "b",
    ]
    assert captions(rows("t.csv", f'url,caption\nu,"{long}"\nv,b\n')) == [long, "b"]
    assert captions(rows("t.tsv", f"url\tcaption\nu\t{long}\nv\tb\n")) == [long, "b"]


@pytest.mark.parametrize("name", ["PAIRS.CSV", "pairs.Csv", "pairs.csv.gz", "PAIRS.CSV.GZ"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_suffixes_in_any_case_and_gz_are_tables(tmp_path, name, as_folder):
    data = b"url,caption\nu,c\n"
    path = put(tmp_path / "in" / name, gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert captions(ingested(path.parent if as_folder else path, tmp_path / "out")) == ["c"]


@pytest.mark.parametrize("name", ["t.tsv.gz", "t.jsonl.gz", "t.ndjson.gz"])
def test_gz_of_each_text_format_is_read(rows, name):
    text = "url\tcaption\nu\tc\n" if "tsv" in name else '{"url": "u", "caption": "c"}\n'
    assert captions(rows(name, gzip.compress(text.encode()))) == ["c"]


def test_a_key_names_the_columns_of_a_table_without_a_header(rows, tmp_path):
    text = "a dog\thttp://e.org/1.jpg\na cat\thttp://e.org/2.jpg\n"
    with pytest.raises(InputError, match=r"ingest\.column_names=\[url,caption\]"):
        rows("t.tsv", text)
    assert rows("t.tsv", text, column_names=("caption", "url")) == [
        {"caption": "a dog", "url": "http://e.org/1.jpg"},
        {"caption": "a cat", "url": "http://e.org/2.jpg"},
    ]
    with pytest.raises(InputError, match=r"names 3 columns, and line 1 of .* has 2 fields"):
        rows("t.tsv", text, column_names=("caption", "url", "x"))
    with pytest.raises(InputError, match="remove the key: it has a header"):
        rows("u.csv", "caption,url\na,b\n", column_names=("caption", "url"))
    with pytest.raises(InputError, match=r"has none; remove the key"):
        rows("t.jsonl", '{"url": "u", "caption": "c"}\n', column_names=("caption", "url"))


def test_hidden_files_and_folders_are_no_tables_and_what_was_skipped_is_said(tmp_path, caplog):
    say_what_is_skipped.cache_clear()
    root = tmp_path / "in"
    put(root / "pairs.csv", "url,caption\nu,c\n")
    for name in (".ipynb_checkpoints/pairs-checkpoint.csv", "_old/a.csv", ".b.csv", "_c.csv", "d.xlsx"):
        put(root / name, "url,caption\nu,hidden\n")
    put(root / "pairs.csv.gz", gzip.compress(b"url,caption\nu,twin\n"))
    assert captions(ingested(root, tmp_path / "out")) == ["c"]
    assert "skipped 5 files that are no tables: .b.csv, .ipynb_checkpoints/pairs-checkpoint.csv, _c.csv, ..." in caplog.text
    assert "skipped 1 file that is there without compression, too: pairs.csv.gz" in caplog.text
    assert captions(ingested(f"{root}/*.csv", tmp_path / "out2")) == ["c"]
    assert captions(ingested(f"{root}/_*.csv", tmp_path / "out3")) == ["hidden"]
    assert captions(ingested(f"{root}/_old", tmp_path / "out4")) == ["hidden"]


# ---- further inputs


def test_a_line_break_in_quotes_is_whole_wherever_a_block_ends(rows):
    texts = [f"{'z' * n}\r\nB" for n in range(500, 1500)] * 9
    table = rows("t.csv", "url,caption\r\n" + "".join(f'u,"{text}"\r\n' for text in texts))
    assert captions(table) == texts


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "NULL", "nan", "NaN", "None", "#N/A", "-", "1.#IND"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_only_an_empty_field_is_null(rows, name, word):
    text = f"url,caption,x\nu,{word},\nv,c,{word}\n"
    table = rows(name, text.replace(",", "\t") if name == "t.tsv" else text)
    assert [(row["caption"], row["x"]) for row in table] == [(word, None), ("c", word)]


def test_all_members_of_a_gz_are_read(rows):
    members = [b"url,caption\nu,one\nv,t", b"wo\n", b"", b"w,three\n"]
    assert captions(rows("t.csv.gz", b"".join(map(gzip.compress, members)))) == ["one", "two", "three"]


def test_a_gz_that_is_cut_is_refused_unless_it_is_still_written(rows):
    text = "url,caption\n" + "".join(f"u{n},{os.urandom(8).hex()}\n" for n in range(9999))
    cut = gzip.compress(text.encode())[:-5000]
    with pytest.raises(InputError, match="the gzip stream ends early; copy the file again"):
        rows("t.csv.gz", cut)
    begun = rows("u.csv.gz", cut, rested=False)
    assert 5000 < len(begun) < 9999
    assert [f"{row['url']},{row['caption']}" for row in begun] == text.splitlines()[1 : len(begun) + 1]


def test_numbers_as_captions_of_a_jsonl_keep_their_own_form(rows):
    assert captions(rows("t.jsonl", "".join(f'{{"url": "u", "caption": {x}, "x": {x}}}\n' for x in (5, 2.5)))) == ["5", "2.5"]


@pytest.mark.parametrize("others", [["a dog"], [], ["a dog", 5]])
def test_numbers_of_a_jsonl_that_become_text_keep_their_digits(rows, others):
    numbers = ["1e5", "1.10", "5", "-0.0", "1E+2"]
    values = [*numbers, *map(json.dumps, others)]
    table = rows("t.jsonl", "".join(f'{{"url": "u", "caption": {value}, "x": {value}}}\n' for value in values))
    assert captions(table) == [*numbers, *map(str, others)]
    assert [row["x"] for row in table] == (captions(table) if others else [100000.0, 1.1, 5.0, -0.0, 100.0])


def test_integers_of_a_jsonl_are_exact(rows):
    numbers = [1 << 53, (1 << 53) + 1, 202101010000000003, (1 << 63) - 1, (1 << 63) + 5, 1 << 80, -(1 << 70)]
    for number in numbers:
        (row,) = rows("t.jsonl", json.dumps({"url": "u", "caption": "c", "x": number}) + "\n")
        assert int(row["x"]) == number
    mixed = rows("t.jsonl", "".join(f'{{"url": "u", "caption": "c", "x": {x}}}\n' for x in [(1 << 53) + 1, 0.5]))
    assert [Decimal(row["x"]) for row in mixed] == [(1 << 53) + 1, Decimal("0.5")]


def test_a_string_of_digits_that_comes_late_keeps_its_zeros(rows):
    table = rows("t.jsonl", typed({"x": 1}, {"x": "007"}))
    assert (table[0]["x"], table[-1]["x"]) == ("1", "007")


@pytest.mark.parametrize("rested", [True, False])
def test_a_quote_that_is_not_closed_costs_its_own_line_only(rows, rested):
    text = 'url,caption\nu1,one\nu2,"two\nu3,three\nu4,say "four"\nu5,"five"\nu6,six\n'
    table = rows("t.csv", text, rested)
    assert captions(table) == ["one", None, "three", 'say "four"', "five", "six"]
    assert table[1][BAD_ROW] == "line 3: text follows a closing quote"
    last = rows("u.csv", 'url,caption\nu1,one\nu2,"two\nu3,three\n', rested)
    assert [row[BAD_ROW] for row in last] == [None, "line 3: a quote is not closed", None]


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("t.csv", b"url,caption\nu,a\nhttp://e.org/12" + bytes(64) + b"\nw,d\n", "line 3: zeros stand in the line: a part of"),
        ("t.tsv", b"url\tcaption\nu\ta\nv\ta photo of a ca" + bytes(9000) + b"\nw\td\n", "line 3: zeros stand in the line"),
        ("t.csv", b"url,caption\nu,a\nv,b,c\nw,d\n", "line 3: the line has 3 fields, and the table 2 columns"),
        ("t.csv", b"url,caption\nu,a\nv\nw,d\n", "line 3: the line has 1 field, and the table 2 columns"),
        ("t.tsv", b"url\tcaption\nu\ta\nv\tb\tc\nw\td\n", "line 3: the line has 3 fields, and the table 2 columns"),
        ("t.csv", b"url,caption\nu,a\nv,caf\xe9\nw,d\n", "line 3: the text is not UTF-8 (byte 0xe9)"),
        ("t.tsv", b"url\tcaption\nu\ta\nv\tcaf\xe9\nw\td\n", "line 3: the text is not UTF-8 (byte 0xe9)"),
        ("t.csv", b'url,caption\nu,a\nv,"b\\"c"\nw,d\n', "line 3: text follows a closing quote"),
        ("t.jsonl", b'{"url": "u", "caption": "a"}\n{"url": "v", \n{"url": "w", "caption": "d"}\n', "line 2: is not JSON"),
        (
            "t.jsonl",
            b'{"url": "u", "caption": "a"}\n{"caption": "\xff"}\n{"url": "w", "caption": "d"}\n',
            "line 2: the text is not",
        ),
        (
            "t.jsonl",
            b'{"url": "u", "caption": "a"}\n{"url": "v", "caption": "b", "caption" : "c"}\n{"url": "w", "caption": "d"}\n',
            'line 2: has the key "caption" twice',
        ),
        ("t.jsonl", b'{"url": "u", "caption": "a"}\n[1]\n{"url": "w", "caption": "d"}\n', "line 2: is an array, not an object"),
        ("t.jsonl", b'{"url": "u", "caption": "a"}\n{"caption": "\\ud83d"}\n{"url": "w", "caption": "d"}\n', "line 2: half of"),
    ],
)
def test_a_bad_line_costs_its_row_with_a_reason(rows, name, data, error):
    table = rows(name, data)
    assert captions(table) == ["a", None, "d"]
    assert table[1][BAD_ROW].startswith(error)
    assert [row[BAD_ROW] for row in (table[0], table[2])] == [None, None]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_utf16_is_refused_with_a_remedy(rows, name, encoding):
    with pytest.raises(InputError, match=r"is UTF-(16|32).* text.*iconv -f UTF-(16|32)") as refused:
        rows(name, "url,caption\nu,c\n".encode(encoding))
    stated = str(refused.value).partition("iconv -f ")[2].split()[0]
    assert "url,caption\nu,c\n".encode(encoding).decode(stated) == "url,caption\nu,c\n", "the remedy works"


@pytest.mark.parametrize(("name", "text"), [("t.csv", "url,caption\nu,c\n"), ("t.jsonl", '{"url": "u", "caption": "c"}\n')])
@pytest.mark.parametrize("packed", [True, False])
def test_a_byte_order_mark_is_no_part_of_a_name(rows, name, text, packed):
    data = b"\xef\xbb\xbf" + text.encode()
    assert rows(name + ".gz" * packed, gzip.compress(data) if packed else data) == [{"url": "u", "caption": "c"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("rested", [True, False])
def test_empty_lines_are_no_rows_and_lines_end_in_any_way(rows, end, rested):
    assert captions(rows("t.csv", end.join(["", "url,caption", "", "u,a", "", "", "v,b", ""]), rested)) == ["a", "b"]
    assert captions(rows("t.tsv", end.join(["url\tcaption", "", "u\ta", "v\tb", ""]), rested)) == ["a", "b"]
    lines = ['{"url": "u", "caption": "a"}', "", '{"url": "v", "caption": "b"}', " ", ""]
    assert captions(rows("t.jsonl", end.join(lines), rested)) == ["a", "b"]


def test_a_field_that_changes_from_object_to_array_is_json_text(rows):
    table = rows("t.jsonl", typed({"x": {"a": [1, None]}}, {"x": [{"a": 1}, "b"]}, 3))
    assert [json.loads(row["x"]) for row in table] == [{"a": [1, None]}] * 3 + [[{"a": 1}, "b"]]


def test_captions_that_are_text_here_and_a_list_there_are_refused(rows):
    with pytest.raises(InputError, match=r"has a list in one line and text in another; .* \(line 3 is the first with a list\)"):
        rows("t.jsonl", '{"url": "u", "caption": "a"}\n\n{"url": "u", "caption": ["a", "b"]}\n')
    with pytest.raises(InputError, match=r"\(line 2 is the first with true or false\)"):
        rows("u.jsonl", '{"url": "u", "caption": "a"}\n{"url": "u", "caption": false}\n')


def test_nan_as_python_writes_it_is_read(rows):
    values = [
        row["x"] for row in rows("t.jsonl", '{"url": "u", "caption": "c", "x": NaN}\n{"url": "v", "caption": "c", "x": 1}\n')
    ]
    assert values[0] != values[0]
    assert values[1] == 1


def test_an_empty_text_in_quotes_is_text_and_not_null(rows):
    assert [row["x"] for row in rows("t.csv", 'url,caption,x\nu,c,""\nv,c,\n')] == ["", None]


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("t.csv", b"PAR1\x15\x04", "parquet; give it the suffix .parquet"),
        ("t.csv", gzip.compress(b"url,caption\nu,c\n", mtime=0), "gzip; add the suffix .gz"),
        ("t.csv.gz", b"url,caption\nu,c\n", "is not gzip; rename it"),
        ("t.tsv", b"PK\x03\x04\x14\x00", "a zip archive or an Excel sheet"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("t.jsonl", b"<!DOCTYPE html><html>\n", "an HTML page"),
        ("t.jsonl", b'[{"url": "u", "caption": "c"}]\n', r"is one JSON array.*jq"),
        ("t.jsonl", b'{\n "url": "u",\n "caption": "c"\n}\n', "no line is a JSON object"),
        ("t.csv", b"url;caption\nu;c\n", "separated by semicolons"),
        ("t.csv", b"url\tcaption\nu\tc\n", "give it the suffix .tsv"),
        ("t.csv", b"url,caption\nu,a,b\nv,c,d\n", r"none of its first 2 rows; line 2: the line has 3 fields"),
    ],
)
def test_a_file_that_is_not_what_its_suffix_says_is_refused(rows, name, data, error):
    with pytest.raises(InputError, match=error) as caught:
        rows(name, data)
    assert name in str(caught.value)

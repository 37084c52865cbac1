"""A text table is opened with its columns, its quotes and its types settled."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.ingest.json_lines import MOST_COLUMNS
from pipeline.ingest.tables import column_names
from pipeline.ingest.text_tables import READER, READER_PLAIN, READER_QUOTED, is_delimited, is_text_table, open_text_table


def table(path, text, *arguments):
    path.write_text(text)
    return open_text_table(str(path), *arguments)


def test_tables_are_known_by_their_suffix():
    assert all(map(is_text_table, ["a.csv", "A.TSV.GZ", "a.ndjson", "s3://b/a.jsonl.gz"]))
    assert not any(map(is_text_table, ["a.parquet", "a.txt", "a.gz", "csv"]))
    assert [is_delimited(name) for name in ("a.CSV", "a.tsv.gz", "a.jsonl", "a.parquet")] == [True, True, False, False]


def test_the_reader_says_how_the_quotes_of_a_tsv_are_read(tmp_path):
    assert table(tmp_path / "t.csv", 'a,b\n1,"2"\n').reader == READER
    assert table(tmp_path / "t.tsv", "a\tb\n1\t2\n").reader == READER
    assert table(tmp_path / "t.tsv", 'a\tb\n1\t"2"\n').reader == READER_PLAIN
    assert table(tmp_path / "t.tsv", 'a\tb\n1\t"2""3"\n').reader == READER_QUOTED


def test_a_jsonl_with_ever_new_keys_is_refused_with_its_line_and_a_remedy(tmp_path):
    lines = [f'{{"url": "u", "caption": "c", "k{number}": 1}}' for number in range(MOST_COLUMNS)]
    table(tmp_path / "t.jsonl", "\n".join(["", *lines[: MOST_COLUMNS - 2], ""]))
    with pytest.raises(
        InputError, match=rf"more than 2,000 columns \(line {MOST_COLUMNS} adds 'k{MOST_COLUMNS - 2}'\).*\"more\""
    ):
        table(tmp_path / "t.jsonl", "\n".join(["", *lines, ""]))
    remedy = [f'{{"url": "u", "caption": "c", "more": {{"k{number}": 1}}}}' for number in range(MOST_COLUMNS)]
    assert table(tmp_path / "t.jsonl", "\n".join(remedy)).columns == ("url", "caption", "more")


def test_a_table_that_was_begun_with_quotes_is_continued_with_them(tmp_path):
    text = 'a\tb\n1\t"2""3"\n4\t"five\n6\t7\n'
    assert table(tmp_path / "t.tsv", text).reader == READER_PLAIN
    held = table(tmp_path / "t.tsv", text, (), READER_QUOTED)
    rows = [row for batch in held.batches() for row in batch.to_pylist()]
    assert [row["b"] for row in rows] == ['2"3', None, "7"]


def test_a_table_without_rows_or_header_is_empty(tmp_path):
    for text, columns in (("", ()), ("\n\n", ()), ("a,b\n", ("a", "b")), ("a,b", ())):
        opened = table(tmp_path / "t.csv", text)
        assert (opened.columns, opened.has_rows()) == (columns, False)


def test_a_header_that_cannot_be_read_is_refused(tmp_path):
    for text in ('a,"b"c\n1,2\n', 'a,"b\n' + "x" * (1 << 21)):
        with pytest.raises(InputError, match=r"t\.csv: line 1"):
            table(tmp_path / "t.csv", text)


@pytest.mark.parametrize("name", ["rayclip:row_text", "rayclip:bad_row"])
def test_names_of_our_own_columns_are_refused(tmp_path, name):
    for path, text in (("t.jsonl", f'{{"url": "u", "{name}": 1}}\n'), ("t.csv", f"url,{name}\nu,1\n")):
        with pytest.raises(InputError, match=f"has a column {name}, a name that is reserved; rename the column"):
            table(tmp_path / path, text)
    pq.write_table(pa.table({"url": ["u"], name: ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=f"has a column {name}, a name that is reserved"):
        column_names(str(tmp_path / "t.parquet"))

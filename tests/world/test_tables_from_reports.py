"""Tables that people reported to pandas, datasets, csvkit and their like, each read right or refused with a remedy that works.

The sources are in tests/world/README.md.
"""

import io
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.plan import plan_ingest
from pipeline.ingest.rows import iter_rows, read_range


@pytest.fixture
def rows(tmp_path):
    """The rows that a run would ingest of a table with this content, as its workers read them."""

    def read(name, data, **options):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        os.utime(path, (1, 1))
        plan = plan_ingest(IngestConfig(input=str(path), output=str(tmp_path / "out"), **options))
        parts = (read_range(spec.rows_path, spec.rows_first, spec.num_rows) for spec in plan.partitions)
        return [row for batches in parts for batch in batches for row in batch.to_pylist()]

    return read


def pairs(table):
    return [(row["url"], row["caption"]) for row in table]


def test_a_byte_order_mark_where_two_jsonl_files_were_joined_costs_no_row(rows):
    one, two = '\ufeff{"url": "u", "caption": "a", "x": 1.10}\n', '\ufeff{"url": "v", "caption": "b", "x": "text"}\n'
    table = rows("t.jsonl", one + two)
    assert pairs(table) == [("u", "a"), ("v", "b")]
    assert [row["x"] for row in table] == ["1.10", "text"]
    assert BAD_ROW not in table[0]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("name", "sign"), [("t.csv", ","), ("t.tsv", "\t")])
def test_a_header_where_two_files_were_joined_is_a_row_that_fails_and_costs_no_other(rows, name, sign, mark):
    table = rows(name, f"url{sign}caption\nu{sign}a\n{mark}url{sign}caption\nv{sign}b\n")
    assert pairs(table) == [("u", "a"), (f"{mark}url", "caption"), ("v", "b")]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_only_line_ends_end_a_line(rows, name, sign):
    captions = [f"a{sign}b", f'"{sign}"', f"c{sign}"]
    if name == "t.jsonl":
        data = "".join(json.dumps({"url": "u", "caption": text}, ensure_ascii=False) + "\n" for text in captions)
    else:
        file = io.StringIO(newline="")
        frame = pd.DataFrame({"url": "u", "caption": captions})
        frame.to_csv(file, index=False, sep="," if name == "t.csv" else "\t", lineterminator="\n")
        data = file.getvalue()
    assert [row["caption"] for row in rows(name, data)] == captions


@pytest.mark.parametrize(
    "data",
    [
        'url, caption\nu, "a dog"\nv, "red, round"\n',
        '"url", "caption"\n"u", "a dog"\n"v", "red, round"\n',
        'url,caption\nu, "a dog"\nv, "red, round"\n',
        '"url", "caption"\n"u","a dog"\n"v","red, round"\n',
    ],
)
def test_spaces_before_quotes_leave_no_quotes_in_captions(rows, data):
    with pytest.raises(InputError, match=r"a space stands before each quote of the column .*skipinitialspace=True") as refused:
        rows("t.csv", data)
    command = str(refused.value).partition("write the table again: ")[2]
    command = command.replace("OLD", "io.StringIO(data)").replace("(NEW, ", "(")
    written = eval(command, {"pandas": pd, "io": io, "data": data})  # the remedy that was printed
    assert pairs(rows("t.csv", written)) == [("u", "a dog"), ("v", "red, round")]


@pytest.mark.parametrize("caption", [' "a dog"', 'say, "a dog"', ' "a" and "b"', ', "x"'])
def test_spaces_before_quotes_within_quotes_are_text(rows, caption):
    data = pd.DataFrame({"url": ["u"], "caption": [caption]}).to_csv(index=False)
    assert pairs(rows("t.csv", data)) == [("u", caption)]


def test_the_slashes_that_pandas_escapes_are_slashes(rows):
    frame = pd.DataFrame({"url": ["http://e.org/a/b.jpg"], "caption": ["a/b \\ c"]})
    data = frame.to_json(orient="records", lines=True)
    assert "\\/" in data
    assert pairs(rows("t.jsonl", data)) == [("http://e.org/a/b.jpg", "a/b \\ c")]


def test_fractions_of_a_jsonl_are_the_nearest_ones_and_whole_ones_stay_fractions(rows):
    data = "".join(f'{{"url": "u", "caption": "c", "x": {x}, "y": {y}}}\n' for x, y in ((0.7, "0.0"), (0.3, "2.0")))
    assert [(row["x"], row["y"], type(row["y"])) for row in rows("t.jsonl", data)] == [(0.7, 0.0, float), (0.3, 2.0, float)]


def test_a_word_among_numbers_makes_text_of_all_and_loses_none(rows):
    data = "".join(f'{{"url": "u", "caption": {value}}}\n' for value in ("1", '"Nan"', "3", "2.50"))
    assert [row["caption"] for row in rows("t.jsonl", data)] == ["1", "Nan", "3", "2.50"]


def test_two_objects_that_a_bug_of_pandas_put_into_one_line_are_a_bad_row(rows):
    table = rows("t.jsonl", '{"url":"u","caption":"a \\\\"},{"url":"v","caption":"b"}\n{"url":"w","caption":"c"}\n')
    assert pairs(table) == [(None, None), ("w", "c")]
    assert table[0][BAD_ROW] == "line 1: is not JSON (extra data at character 29)"


def test_a_text_that_looks_like_a_schema_is_a_text(rows):
    text = "### bug (...) ,action: string, datetime: timestamp[s], author: string"
    assert pairs(rows("t.jsonl", json.dumps({"url": "u", "caption": text}) + "\n")) == [("u", text)]


def test_doubled_quotes_around_fields_cost_their_line(rows):
    table = rows("t.csv", 'url,caption\n""malformed","quotes"",\nv,b\n')
    assert pairs(table) == [(None, None), ("v", "b")]
    assert table[0][BAD_ROW].startswith("line 2: ")


@pytest.mark.parametrize("names", [["url", "caption", "url"], ["url", "caption", "caption"]])
def test_a_name_twice_is_refused_also_where_there_is_no_header(rows, names):
    with pytest.raises(InputError, match=rf"two columns are named {names[2]}; rename or drop one of them"):
        rows("t.csv", "u,a,b\n", column_names=names)


@pytest.mark.parametrize(("levels", "kept"), [(5, True), (25, True), (150, True), (250, False), (950, False), (5000, False)])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}"), ('[{"a": ', "}]")])
def test_a_value_that_is_deep_costs_its_row_at_most(rows, levels, kept, opening, closing):
    count = levels // (2 if opening == '[{"a": ' else 1)
    deep = opening * count + "1.50" + closing * count
    lines = [f'{{"url": "u", "caption": "a", "x": {value}}}' for value in ("[]", deep, "null")]
    table = rows("t.jsonl", "\n".join(lines))
    assert [row["caption"] for row in table] == ["a", "a" if kept else None, "a"]
    if not kept:
        assert table[1][BAD_ROW] == "line 2: has more than 200 objects or lists within each other"
    elif isinstance(table[1]["x"], str):
        assert table[1]["x"] == deep.replace(" ", "")


def test_the_index_that_pandas_writes_is_a_column(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"url": ["u", "v"], "caption": pd.Categorical(["a", "b"])}, index=[7, 3]).to_parquet(path)
    config = IngestConfig(input=str(path), output=str(tmp_path / "out"))
    (spec,) = plan_ingest(config).partitions
    found = list(iter_rows(str(path), 0, 2, config, spec.rows_sha256))
    assert [(row.url, row.caption, row.extra.json_record()) for row in found] == [
        ("u", "a", {"__index_level_0__": 7}),
        ("v", "b", {"__index_level_0__": 3}),
    ]


def test_images_of_which_a_parquet_file_holds_only_the_paths_are_no_images(tmp_path):
    path = tmp_path / "t.parquet"
    image = pa.array([{"bytes": None, "path": "1.jpg"}, {"bytes": b"", "path": None}, None])
    pq.write_table(pa.table({"image": image, "caption": ["a", "b", "c"]}), path)
    config = IngestConfig(input=str(path), output=str(tmp_path / "out"), bytes_column="image")
    assert [row.image for row in iter_rows(str(path), 0, 3, config)] == [b"", b"", b""]

"""Tables written by pandas, polars, duckdb, pyarrow and the csv and json modules are read as they were written.

Random texts, types and dialects; what we read is compared with what was written, and with what two other readers make of the
file. A difference is a fault, or a rule that is written down (docs/decisions/0018-tables.md).
"""

import csv
import io
import json
import os
import random
import tempfile
from collections import Counter

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pytest

from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_lines import ROW_TEXT
from pipeline.ingest.text_tables import open_text_table

PIECES = [
    "a",
    "dog",
    " ",
    " ",
    "'",
    '"',
    '""',
    ",",
    ";",
    "|",
    "\\",
    "é",
    "緑",
    "🟢",
    "NA",
    "null",
    "#",
    "0",
    "-1.50",
    "\x00",
    "{",
    "=",
]
NAMES = ["url", "caption", "x", "y"]
DUCKDB = duckdb.connect()
DUCKDB.execute("SET threads = 1")


@pytest.fixture
def place(tmp_path):
    """Folder for one file after another."""
    return tmp_path


def text_of(dice, pieces):
    if dice.random() < 0.3:
        return dice.choice(["plain", "two words", "2020-01-01", "007", "true", "1e5"])
    return "".join(dice.choices(pieces, k=dice.randrange(1, 8)))


def table_of(dice, pieces):
    """Rows of text and null."""
    return [
        {name: None if name != "url" and dice.random() < 0.1 else text_of(dice, pieces) for name in NAMES}
        for _ in range(dice.randrange(1, 9))
    ]


def write_csv(dice, rows, delimiter):
    """(name of the writer, bytes)."""
    frame = pd.DataFrame(rows, columns=NAMES)
    end = dice.choice(["\n", "\r\n"])
    quoting = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    writer = dice.choice(["csv", "pandas", "polars", "duckdb", "pyarrow"])
    if writer == "csv":
        file = io.StringIO(newline="")
        out = csv.DictWriter(file, NAMES, delimiter=delimiter, quoting=quoting, lineterminator=end)
        out.writeheader()
        out.writerows(rows)
        return f"csv {quoting}", file.getvalue().encode()
    if writer == "pandas":
        return f"pandas {quoting}", frame.to_csv(index=False, sep=delimiter, quoting=quoting, lineterminator=end).encode()
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in NAMES]))
    if writer == "polars":
        style = dice.choice(["necessary", "always", "non_numeric"])
        frame = pl.DataFrame(rows, schema=dict.fromkeys(NAMES, pl.String))
        return f"polars {style}", frame.write_csv(separator=delimiter, quote_style=style, line_terminator=end).encode()
    if writer == "duckdb":
        force = dice.choice(["", "FORCE_QUOTE *,", "FORCE_QUOTE (caption),"])
        path = f"{tempfile.gettempdir()}/rayclip-peer-{os.getpid()}.csv"
        DUCKDB.register("written", table)
        DUCKDB.execute(
            f"COPY (SELECT * FROM written) TO '{path}' ({force} HEADER, DELIMITER '{delimiter}', QUOTE '\"', FORMAT csv)"
        )
        with open(path, "rb") as file:  # noqa: PTH123
            data = file.read()
        os.unlink(path)  # noqa: PTH108
        return f"duckdb {force}", data
    sink = pa.BufferOutputStream()
    style = dice.choice(["needed", "all_valid"])
    pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(delimiter=delimiter, quoting_style=style))
    return f"pyarrow {style}", sink.getvalue().to_pybytes()


def ours(path):
    before = path.stat().st_mtime - 7200
    os.utime(path, (before, before))
    table = open_text_table(str(path))
    rows = [row for batch in table.batches() for row in batch.to_pylist()]
    assert not any(BAD_ROW in row for row in rows), rows
    return [{name: value for name, value in row.items() if name != ROW_TEXT} for row in rows]


def same(rows):
    """Rows with null for empty text, between which not every writer and reader tells."""
    return [[row[name] or None for name in NAMES] for row in rows]


def by_csv_module(data, delimiter):
    return same(csv.DictReader(io.StringIO(data.decode(), newline=""), delimiter=delimiter))


def by_pandas(data, delimiter):
    frame = pd.read_csv(io.BytesIO(data), sep=delimiter, dtype=str, keep_default_na=False, na_filter=False)
    return same(frame.to_dict("records"))


def by_polars(data, delimiter):
    return same(pl.read_csv(io.BytesIO(data), separator=delimiter, infer_schema=False).to_dicts())


def by_pyarrow(data, delimiter):
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(NAMES, pa.string()), strings_can_be_null=False)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return same(pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=options).to_pylist())


def compare_delimited(place, count, seed):
    dice = random.Random(seed)
    differing = Counter()
    for number in range(count):
        delimiter, suffix = dice.choice([(",", "csv"), ("\t", "tsv")])
        breaks = dice.random() < 0.5
        pieces = [piece for piece in PIECES if suffix == "csv" or piece != "#"]  # duckdb quotes it, as the start of a comment
        pieces += (["\n", "\r\n"] if breaks else []) + ([] if breaks and suffix == "tsv" else ["\t"])
        rows = table_of(dice, pieces)
        writer, data = write_csv(dice, rows, delimiter)
        path = place / f"t.{suffix}"
        path.write_bytes(data)
        assert same(ours(path)) == same(rows), (seed, number, writer, data)
        for peer in dice.sample([by_csv_module, by_pandas, by_polars, by_pyarrow], 2):
            try:
                differing[peer.__name__] += peer(data, delimiter) != same(rows)
            except Exception:  # a peer that refuses the file
                differing[peer.__name__] += 1
    return differing


def compare_plain_tsv(place, count, seed):
    """Files whose quotes were never meant as quotes."""
    dice = random.Random(seed)
    for number in range(count):
        rows = table_of(dice, [piece for piece in PIECES if piece != '""'])
        rows = [{name: value or "-" for name, value in row.items()} for row in rows]
        rows.append(dict.fromkeys(NAMES, "x") | {"caption": '"' + text_of(dice, ["a", " "]) + dice.choice(["", '"'])})
        dice.shuffle(rows)
        end = dice.choice(["\n", "\r\n"])
        data = end.join("\t".join(values) for values in [NAMES, *(row.values() for row in rows)]) + end
        path = place / "t.tsv"
        path.write_bytes(data.encode())
        assert same(ours(path)) == same(rows), (seed, number, data)
        file = io.StringIO(data, newline="")
        assert same(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) == same(rows)


def value_of(dice, kind):
    if dice.random() < 0.1 or kind == "null":
        return None
    if kind == "list":
        return [value_of(dice, "int") for _ in range(dice.randrange(3))]
    if kind == "object":
        return {name: value_of(dice, "text") for name in dice.sample("abc", dice.randrange(1, 4))}
    if kind == "any":
        return value_of(dice, dice.choice(["int", "float", "bool", "text", "list", "object"]))
    if kind == "number":
        return value_of(dice, dice.choice(["int", "float"]))
    return {
        "int": lambda: dice.randrange(-(1 << dice.randrange(1, 63)), 1 << dice.randrange(1, 63)),
        "float": lambda: dice.choice([0.5, -1.25, 1e300, 3.0, dice.random()]),
        "bool": lambda: dice.random() < 0.5,
        "text": lambda: text_of(dice, [*PIECES, "\n", "\t", "\r"]),
    }[kind]()


def is_same_json(got, wrote, mixed):
    """True if a value is the one that was written, or its text in a field of several kinds."""
    if mixed and type(wrote) in (int, float):
        return got == json.dumps(wrote)  # the digits of the file
    if mixed and wrote is not None:
        return got == wrote if isinstance(wrote, str) and got == wrote else json.loads(got) == wrote
    if isinstance(wrote, dict):
        return {name: value for name, value in got.items() if value is not None} == {
            name: value for name, value in wrote.items() if value is not None
        }
    return got == wrote


def compare_json(place, count, seed):
    dice = random.Random(seed)
    differing = Counter()
    for number in range(count):
        kinds = {
            name: dice.choice(["int", "float", "bool", "text", "list", "object", "number", "any", "null"]) for name in "xyz"
        }
        rows = [
            {"url": "u"} | {name: value_of(dice, kind) for name, kind in kinds.items() if dice.random() < 0.9}
            for _ in range(dice.randrange(1, 9))
        ]
        options = dice.choice([{}, {"ensure_ascii": False}, {"separators": (",", ":")}])
        data = dice.choice(["\n", "\r\n"]).join(json.dumps(row, **options) for row in rows).encode()
        path = place / "t.jsonl"
        path.write_bytes(data)
        table = ours(path)
        assert len(table) == len(rows), (seed, number, data)
        for name in ("url", *kinds):
            wrote = [row[name] if name in row else None for row in rows]
            got = [row[name] if name in row else None for row in table]
            mixed = any(isinstance(value, str) for value in got) and not all(
                isinstance(value, str) for value in wrote if value is not None
            )
            for a, b in zip(got, wrote, strict=True):
                assert is_same_json(a, b, mixed), (seed, number, name, a, b, data)
        for peer in ("polars", "pyarrow"):
            try:
                if peer == "polars":
                    read = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None).to_dicts()
                else:
                    read = pyarrow.json.read_json(io.BytesIO(data)).to_pylist()
                differing[peer] += [row["url"] for row in read] != ["u"] * len(rows)
            except Exception:  # a peer that refuses the file
                differing[peer] += 1
    return differing


def test_delimited_tables_of_five_writers_are_read_as_they_were_written(place):
    differing = compare_delimited(place, 220, 0)
    assert differing["by_csv_module"] == 0


def test_tsv_without_quoting_is_read_as_it_was_written(place):
    compare_plain_tsv(place, 150, 0)


def test_json_lines_are_read_as_they_were_written(place):
    compare_json(place, 150, 0)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_thousand_tables_are_read_as_they_were_written(place, seed):
    for differing in (compare_delimited(place, 8000, seed), compare_json(place, 6000, seed)):
        print(differing)
    compare_plain_tsv(place, 6000, seed)

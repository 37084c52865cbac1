"""The places where rows of the first reader end are those that pyarrow itself finds."""

import random

import pyarrow as pa

from pipeline.ingest.first_text_reader import ends_of_rows, first_batches, swallowed_lines
from pipeline.ingest.text_source import open_source
from pipeline.ingest.text_tables import open_text_table

PLAIN, QUOTED = ["a", "b", " ", '"', '""'], ["a", '""', "\n", "\r\n", ",", "\r"]


def field(dice):
    tail = "".join(dice.choices(PLAIN[:3], k=dice.randrange(3)))
    return f'"{"".join(dice.choices(QUOTED, k=3))}"{tail}' if dice.random() < 0.5 else "a" + "".join(dice.choices(PLAIN, k=3))


def rows_of(source, stop):
    return [row for batch in first_batches(source, stop) for row in batch.to_pylist()]


def test_what_lies_before_an_end_is_read_as_that_many_rows(tmp_path):
    dice, path, checked = random.Random(0), tmp_path / "t.csv", 0
    for _ in range(150):
        body = dice.choice(["\n", "\r\n", "\r", "\n\n"]).join(f"{field(dice)},{field(dice)}" for _ in range(4))
        path.write_text("x,y\n" + body + "\n", newline="")
        source = open_source(str(path))
        try:
            rows = rows_of(source, source.size_bytes)
        except pa.ArrowInvalid:
            continue
        if any(value and value[-1] in "\r\n" for value in rows[-1].values() if value):
            continue  # a quote is open at the end
        checked += 1
        for count, place in ends_of_rows(source, range(len(rows) + 1)).items():
            assert rows_of(source, place) == rows[:count], (path.read_bytes(), count, place)
    assert checked > 20


def test_ends_of_lines_of_a_jsonl_are_found(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\r\n{"a": 3}')
    assert ends_of_rows(open_source(str(path)), [1, 2, 3, 4]) == {1: 9, 2: 20, 3: 28}


def test_lines_that_were_read_as_one_row_are_found(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('a\tb\n1\t2\n3\t"x\n4\ty\n5\t"z\n')
    source = open_source(str(path))
    assert swallowed_lines(source, open_text_table(str(path)), source.size_bytes) == [(3, 5)]

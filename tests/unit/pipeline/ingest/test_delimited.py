"""Rows and errors of delimited text do not depend on blocks, nor on whether pyarrow or our own code splits them."""

import itertools
import random

import pytest

from pipeline.ingest.delimited import BAD_ROW, DelimitedReader, Dialect, count_lines, length_of_records

CSV, PLAIN = Dialect(b",", True), Dialect(b"\t", False)
LINES = [
    b"//h/1,a\n",
    b'//h/2,"a\n',
    b'//h/3,15"\n',
    b'//h/4,"a ""b"", c\nd"\n',
    b"//h/5,a\rb\n",
    b"//h/6,a\r",
    b"\n",
    b"x,y\n",
    b"//h/7,\r\n",
    b'//h/8,"e\rf"\n',
]
PIECES = [b"a", b"b", b"\xef\xbb\xbf", b'"', b'"', b'""', b",", b",", b"\n", b"\n", b"\r\n", b"\r", b"\xff", b" "]


def read(data, cuts=(), complete=True, dialect=CSV):
    places = [0, *sorted(cuts), len(data)]
    reader = DelimitedReader(dialect, ["x", "y"], complete)
    blocks = (data[a:b] for a, b in itertools.pairwise(places))
    return [
        (row["x"], row["y"], row[BAD_ROW] if BAD_ROW in row else None)
        for batch in reader.batches(blocks)
        for row in batch.to_pylist()
    ]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("pieces", "dialect"),
    [(PIECES, CSV), (PIECES, PLAIN), (LINES, CSV), (LINES, Dialect(b",", True, ends_with_cr=False))],
    ids=["csv", "plain", "lines of csv", "lines that do not end with a carriage return"],
)
def test_rows_do_not_depend_on_where_blocks_end(complete, pieces, dialect):
    dice = random.Random(0)
    for _ in range(150):
        data = b"".join(dice.choices(pieces, k=dice.randrange(1, 40 if pieces is PIECES else 12)))
        whole = read(data, (), complete, dialect)
        for _ in range(3):
            cuts = [dice.randrange(len(data) + 1) for _ in range(dice.randrange(4))]
            assert read(data, cuts, complete, dialect) == whole, (data, cuts)


def test_the_lines_of_rows_that_cannot_be_read_are_counted_in_the_file():
    data = b'a,"b\nc"\n\nd\ne,f\r\n"g,h\ni,j\n'
    assert read(data) == [
        ("a", "b\nc", None),
        (None, None, "line 4: the line has 1 field, and the table 2 columns"),
        ("e", "f", None),
        (None, None, "line 6: a quote is not closed"),
        ("i", "j", None),
    ]


def test_a_byte_order_mark_within_the_table_is_text():
    data = "\ufeffa,b\n\ufeffc,d\n".encode()
    for cut in range(len(data)):
        assert read(data, [cut]) == [("\ufeffa", "b", None), ("\ufeffc", "d", None)]


def test_records_end_where_quotes_are_even():
    assert length_of_records(b'a,"b\n', CSV) == 0
    assert length_of_records(b'a,"b\n"\nc', CSV) == 7
    assert length_of_records(b'a,b"c\n', CSV) is None
    assert length_of_records(b'a\t"b\n', PLAIN) == 5


def test_a_line_longer_than_a_record_may_be_is_named(monkeypatch):
    monkeypatch.setattr("pipeline.ingest.delimited.LONGEST_RECORD_BYTES", 100)
    with pytest.raises(Exception, match="line 2 is longer than"):
        read(b"a,b\n" + b"x" * 300, [4, 150])


def test_line_ends_of_every_kind_are_counted():
    assert count_lines(b"a\nb\r\nc\rd") == 3


SWALLOWED = "a quote reaches over lines that are rows; double it, or quote the field"
CARRIAGE_RETURN = "a carriage return stands in the line; remove it, or quote the field"


def test_lines_between_two_stray_quotes_are_rows_and_the_first_is_an_error():
    data = b'//h/1,a\n//h/2,"tall tree\n//h/3,c\n\nragged\n//h/4,15"\n//h/5,"one\ntwo"\n'
    assert read(data) == [
        ("//h/1", "a", None),
        (None, None, f"line 2: {SWALLOWED}"),
        ("//h/3", "c", None),
        (None, None, "line 5: the line has 1 field, and the table 2 columns"),
        ("//h/4", '15"', None),
        ("//h/5", "one\ntwo", None),
    ]


def test_a_carriage_return_in_a_line_is_an_error_unless_it_ends_a_row():
    dialect = Dialect(b",", True, ends_with_cr=False)
    data = b"//h/1,a\rb\n//h/2,c\r//h/3,d\n//h/4,e\rf,g\n//h/5,h\r\n//h/6,i\r"
    assert read(data, dialect=dialect) == [
        (None, None, f"line 1: {CARRIAGE_RETURN}"),
        ("//h/2", "c", None),
        ("//h/3", "d", None),
        (None, None, f"line 5: {CARRIAGE_RETURN}"),
        ("//h/5", "h", None),
        ("//h/6", "i", None),
    ]

"""A quoted field of several lines is text, unless one of its lines is a row of the table."""

import pytest

from pipeline.ingest.swallowed_rows import are_alike, has_addresses, has_swallowed_rows

URL = b"http://h/1.jpg"


@pytest.mark.parametrize(
    ("before", "content", "after"),
    [
        ([URL], b"tall tree\nhttp://h/2.jpg,TV 15", []),
        ([URL], b"tall tree\r\nhttp://h/2.jpg,x\r\nhttp://h/3.jpg,TV 15", []),
        ([URL], b"tall tree\n\nragged\nhttp://h/2.jpg,TV 15", []),
        ([b"7", URL], b"tall tree\n8,http://h/2.jpg,TV 15", []),
        ([], b"tall tree,http://h/2.jpg\nTV 15", [URL]),
        ([], b"tall tree,http://h/2.jpg\nx,http://h/3.jpg\nTV 15", [URL]),
        ([b"/data/1.jpg"], b"tall tree\n/data/2.jpg,TV 15", []),
        ([b"1.png"], b"tall tree\n2.PNG,TV 15", []),
    ],
)
def test_a_field_that_holds_a_row_has_swallowed_it(before, content, after):
    assert has_swallowed_rows(before, content, after, b",")


@pytest.mark.parametrize(
    ("before", "content", "after"),
    [
        ([URL], b"red, blue\nor green, white", []),
        ([URL], b"see\nhttp://h/2.jpg", []),
        ([URL], b"see http://h/2.jpg,\nor call", []),
        ([URL], b"hello\nred, white", []),
        ([], b"Nice shoes\nblue", [URL]),
        ([], b"Nice shoes,\nblue", [URL]),
        ([b"7"], b"tall tree\n8,TV 15", []),
        ([URL], b"1,2\n3,4\n5,6", []),
        ([URL], b"end/of,line\nand/or,this", []),
    ],
)
def test_text_of_several_lines_is_text(before, content, after):
    assert not has_swallowed_rows(before, content, after, b",")


def test_rows_are_alike_if_addresses_stand_in_the_same_places():
    assert are_alike([URL, b"x"], [b"https://h/2", b"y"])
    assert not are_alike([URL, b"x"], [b"dog", b"cat"])
    assert not are_alike([URL, b"x"], [URL])
    assert are_alike([b"1", b"x"], [b"2", b"y"])
    assert has_addresses([b"x", URL])
    assert not has_addresses([b"x", b"and/or"])

"""A group of members becomes one row: captions, values and columns by their rules."""

import pytest

from pipeline.config import IndexConfig
from pipeline.dataset.tar_members import Group, Member
from pipeline.versions.tar_rows import MAX_COLUMNS, REPEATED, SCATTERED, mark_scattered, row_of, table_of


def group_of(key="0", **members):
    places = enumerate(members.items(), start=1)
    found = {
        extension: Member(extension, place * 1024, len(data), is_sparse=False, content=data)
        for place, (extension, data) in places
    }
    return Group(key, 0, found)


@pytest.fixture
def image(draw_shape):
    return draw_shape("red", "disc", 0)


def test_a_sample_has_the_places_of_its_members(image):
    row = row_of(group_of(jpg=image, txt=b"a disc", json=b'{"score": 1}'), IndexConfig())
    assert (row["jpg_offset"], row["jpg_size"], row["txt_offset"], row["json_offset"]) == (1024, len(image), 2048, 3072)
    assert (row["caption"], row["score"], row["status"]) == ("a disc", 1, "success")


def test_training_reads_a_caption_from_the_sidecar_where_the_txt_member_is_another(image):
    config = IndexConfig(caption_key="alt")
    for row in (
        row_of(group_of(jpg=image, txt=b"x", json=b'{"alt": "a disc"}'), config),
        row_of(group_of(jpg=image, txt=b"\xef\xbb\xbfa disc"), IndexConfig()),
    ):
        assert (row["caption"], row["txt_offset"]) == ("a disc", None)


def test_a_row_that_is_no_sample_has_no_places(image):
    row = row_of(group_of(jpg=image, txt=b""), IndexConfig())
    assert (row["reason"], row["jpg_offset"], row["sha256"]) == ("empty_caption", None, None)


def test_of_the_rows_of_a_key_the_first_sample_stays(image):
    groups = [group_of(json=b"{}"), group_of(jpg=image, txt=b"a"), group_of(jpg=image, txt=b"b"), group_of("1", txt=b"c")]
    rows = [row_of(group, IndexConfig()) for group in groups]
    mark_scattered(rows)
    assert [row["reason"] for row in rows] == [SCATTERED, "success", REPEATED, "no_image"]


def test_columns_have_one_type_or_are_text():
    values = [{"a": 2**64 - 1, "b": 2**70, "c": 1, "d": True}, {"a": 1, "b": None, "c": "x", "d": 3}, {}]
    rows = [row_of(group_of(txt=b""), IndexConfig()) | value for value in values]
    table = table_of(rows)
    assert [str(table[name].type) for name in "abcd"] == ["uint64", "string", "string", "string"]
    assert table["c"].to_pylist() == ["1", "x", None]
    assert table["b"].to_pylist() == [str(2**70), None, None]


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (["en", 5, True, None], ["en", "5", "true", None]),
        ([0, "0", 0.5, float("nan")], ["0", "0", "0.5", None]),
        (["one", ["p", "q"], 7, None, []], [["one"], ["p", "q"], ["7"], None, []]),
        (['"quoted"', 'say "x"', 1], ['"quoted"', 'say "x"', "1"]),
        ([True, 3], ["true", "3"]),
    ],
)
def test_text_beside_other_values_stays_as_it_was_written(values, stored):
    rows = [row_of(group_of(txt=b""), IndexConfig()) | {"alt": value} for value in values]
    assert table_of(rows)["alt"].to_pylist() == stored


def test_names_that_differ_in_every_row_make_no_endless_table():
    rows = [row_of(group_of(txt=b""), IndexConfig()) | {f"name {number}": 1} for number in range(MAX_COLUMNS + 50)]
    assert table_of(rows).num_columns < MAX_COLUMNS + 50

"""Captions and json members of tars that people have: text is text, and an odd value costs itself at most."""

import io
import json

import pytest
from PIL import ExifTags, Image

from pipeline.dataset.manifest import ManifestError, read_sidecar
from tests.support.tars import Indexed, packed, pairs, whole

# --------------------------------------------------------------------------------------------------------------- json members


def deep(levels):
    return b'{"a":' * levels + b"1" + b"}" * levels


ODD = {
    "hash as an unsigned number": b'{"hash": 18446744073709551615}',
    "true for a width": b'{"original_width": true}',
    "a number that is no integer": b'{"original_width": 1.5, "width": "x", "exif": {"a": 1}, "url": 7}',
    "more than 64 bits": b'{"hash": 340282366920938463463374607431768211456}',
    "half a surrogate pair": rb'{"title": "\ud83d", "\ud83d": 1, "tags": ["\udc00"]}',
    "not a number": b'{"score": NaN, "other": -Infinity}',
    "nested too deep": deep(100_000),
    "a number of 5,000 digits": b'{"n": ' + b"9" * 5000 + b"}",
    "invalid UTF-8": b'{"title": "caf\xe9"}',
    "not JSON": b"<html>",
    "empty": b"",
    "a list": b"[1, 2]",
    "objects in lists": b'{"boxes": [[1, 2], {"a": {}}], "empty": {}, "list": []}',
    "a name twice": b'{"a": 1, "a": "x"}',
    "a byte order mark": b'\xef\xbb\xbf{"title": "x"}',
    "our names": b'{"status": "x", "reason": 5, "key": [], "sha256": "0", "jpg_offset": "x", "error_message": 1}',
    "an empty name": b'{"": 1}',
    "17 MB": b'{"x": "' + b"y" * (17 << 20) + b'"}',
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_json_member_costs_its_own_values_at_most(indexed, image, odd):
    plain = json.dumps({"hash": 1, "title": "t", "score": 0.5, "original_width": 640, "tags": ["a"], "a": "b"}).encode()
    members = [part for key in "012" for part in (*pairs(image, key), (f"{key}.json", odd if key == "1" else plain))]
    data_set = indexed(packed(members))
    assert data_set.samples() == [(key, text, image) for key, text in whole("0", "1", "2")]
    assert [row["original_width"] for row in data_set.rows] == [640, None, 640]
    assert [row["title"] for row in data_set.rows][::2] == ["t", "t"]


def test_values_of_a_json_member_keep_their_types(indexed, image):
    texts = [{"hash": 2**63 + 5, "n": 1, "s": "x", "tags": ["a", "b"], "ok": True}, {"hash": 7, "n": 0.5, "s": 5, "ok": False}]
    members = [
        part for key, text in zip("01", texts, strict=True) for part in (*pairs(image, key), (f"{key}.json", json.dumps(text)))
    ]
    data_set = indexed(packed([(name, data.encode() if isinstance(data, str) else data) for name, data in members]))
    found = [[row[name] for row in data_set.rows] for name in ("hash", "n", "s", "tags", "ok")]
    assert found == [[2**63 + 5, 7], [1.0, 0.5], ["x", "5"], [["a", "b"], None], [True, False]]


@pytest.mark.parametrize("odd", ["5", "null", "NaN", "true", '["p", "q"]'])
def test_an_odd_value_changes_no_text_beside_it_for_captions_and_conditions(indexed, image, odd):
    from pipeline.versions.condition_values import to_frame
    from pipeline.versions.conditions import holds

    members = [
        member
        for key, alt in zip("012", ('"en"', odd, '"de"'), strict=True)
        for member in (*pairs(image, key), (f"{key}.json", b'{"alt": %s}' % alt.encode()))
    ]
    data_set = indexed(packed(members))
    captions = {key: texts for key, texts, _ in data_set.samples(("caption", "alt"))}
    assert (captions["0"], captions["2"]) == (("a disc", "en"), ("a disc", "de"))
    frame = to_frame(read_sidecar(data_set.storage, data_set.manifest.shards[0]).select(["alt"]))
    assert holds(frame, "alt == 'en'", "s", ["alt"]).tolist() == [True, False, False]
    assert holds(frame, "alt != 'en'", "s", ["alt"]).tolist() == [False, True, True]


def test_values_without_a_column_are_counted(indexed, image):
    from pipeline.versions.foreign_tars import describe, read_tar

    values = [{"tags": ["a"], "n": None}, {"tags": [1, 2], "n": 1}, {"tags": ["b", 3]}, {"alt": {"en": "y"}}]
    members = [
        part
        for key, one in zip("0123", values, strict=True)
        for part in (*pairs(image, key), (f"{key}.json", json.dumps(one).encode()))
    ]
    data_set = indexed(packed(members))
    assert [row["tags"] for row in data_set.rows] == [["a"], None, None, None]
    (line,) = describe([read_tar(data_set.config.input, data_set.config)])
    assert "json members with objects or lists of more than texts, which get no columns: 3 members" in line
    assert "the first is 1 (tags)" in line


def test_names_beyond_the_most_columns_are_counted(indexed, image):
    from pipeline.versions.foreign_tars import describe, read_tar

    many = [json.dumps({f"{letter}{number}": 1 for number in range(600)}).encode() for letter in "cde"]
    members = [part for key, one in zip("012", many, strict=True) for part in (*pairs(image, key), (f"{key}.json", one))]
    data_set = indexed(packed(members))
    (line,) = describe([read_tar(data_set.config.input, data_set.config)])
    assert "json members with names beyond the first 1,000: 1 members" in line
    assert "the first is 2 (e0)" in line


@pytest.mark.parametrize("values", [[1.5, True], [True, 1.5], [1, True], [True, 1], [float("nan"), True], [0.5, None, False]])
def test_true_and_false_beside_numbers_are_text_in_any_order(indexed, image, values):
    members = [
        member
        for key, value in enumerate(values)
        for member in (*pairs(image, str(key)), (f"{key}.json", json.dumps({"x": value}).encode()))
    ]
    found = [row["x"] for row in indexed(packed(members)).rows]
    assert found == [None if value is None or value != value else json.dumps(value) for value in values]


@pytest.mark.parametrize(
    ("alt", "captions"),
    [
        ("2019", ("2019",)),
        ("0.5", ("0.5",)),
        ("[5, 6]", ("5", "6")),
        ('["x", 6]', ("x", "6")),
        ('["x", null]', ("x",)),
        ("null", ()),
        ("NaN", ()),
        ('" "', ()),
        ("true", None),
        ('{"en": "x"}', None),
        ('["x", true]', None),
        ('[["x"]]', None),
    ],
)
def test_training_takes_the_captions_that_the_index_takes(indexed, image, alt, captions, tmp_path):
    """Args: captions: none, or None for what is no caption."""
    members = [*pairs(image, "1"), ("1.json", b'{"alt": "good"}'), *pairs(image, "0")]
    members.append(("0.json", b'{"alt": %s}' % alt.encode()))
    (tmp_path / "by_key").mkdir()
    row = Indexed(tmp_path / "by_key", packed(members), caption_key="alt").rows[1]
    assert row["reason"] == ("success" if captions else "empty_caption" if captions == () else "bad_caption")
    texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
    assert not captions or texts == [*captions]
    data_set = indexed(packed(members))
    if captions is None:
        with pytest.raises(ManifestError, match=r"0 has no caption in json\.alt, which holds more than texts and numbers"):
            data_set.samples(("caption", "json.alt"))
    else:
        assert data_set.samples(("caption", "json.alt"))[1][1] == ("a disc", *captions)
    if not captions:
        with pytest.raises(ManifestError, match=r"sample 0 has no caption in json\.alt"):
            data_set.samples(("json.alt",))


def test_values_under_our_names_are_kept_beside_ours(indexed, image):
    values = b'{"key": "0", "sha256": "of the original", "width": 9999, "source_sha256": "theirs", "caption": "another"}'
    (row,) = indexed(packed([*pairs(image, "0"), ("0.json", values)])).rows
    assert (row["source_width"], row["source_caption"]) == (9999, "another")
    assert (row["source_sha256"], row["source_sha256_2"]) == ("theirs", "of the original")
    assert "source_key" not in row


# ------------------------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"\xef\xbb\xbfa dog", "a dog"),
        ("a dög".encode("utf-16"), "a dög"),
        ("a dög".encode("utf-32"), "a dög"),
        (b"\0\0\xfe\xff" + "a dög".encode("utf-32-be"), "a dög"),
        (b"a dog" + bytes(100), "a dog" + "\0" * 100),
        (b"a dog\r\n", "a dog\r\n"),
        ("狗".encode(), "狗"),
    ],
)
def test_a_txt_member_is_read_as_text_in_its_encoding(indexed, image, content, caption):
    data_set = indexed(packed([("0.jpg", image), ("0.txt", content), *pairs(image, "1")]))
    assert data_set.samples() == [("0", (caption,), image), ("1", ("a disc",), image)]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", ["a red disc", "рыжий кот на окне", "рыжий", "γάτα", "قطة حمراء", "חתול", "แมวส้ม", "बिल्ली"])
def test_a_txt_member_in_utf16_without_its_mark_is_no_caption_in_any_script(indexed, image, text, encoding):
    (row,) = indexed(packed([("0.jpg", image), ("0.txt", text.encode(encoding))])).rows
    assert row["reason"] == "bad_caption"
    assert "looks like UTF-16" in row["error_message"] or "is not UTF-8" in row["error_message"]


@pytest.mark.parametrize("text", ["a\nb\nc\nd", "a\tdisc", "a\r\nb", "é", "\x04 one", "1\n2\n3"])
def test_a_few_control_characters_and_short_lines_are_captions(indexed, image, text):
    assert indexed(packed([("0.jpg", image), ("0.txt", text.encode())])).samples() == [("0", (text,), image)]


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\ufeff", "\0\0\0", "&nbsp;", "&amp;nbsp; \u200d", "\u3000"])
def test_a_caption_that_shows_nothing_is_empty_as_in_tables(indexed, image, text, tmp_path):
    from pipeline.config import CaptionConfig
    from pipeline.transform.caption import clean_caption

    assert clean_caption(text, CaptionConfig()).reason == "empty_caption"
    listed = json.dumps({"alt": ["", text]}).encode()
    members = [("0.jpg", image), ("0.txt", text.encode()), ("0.json", listed)]
    assert [row["reason"] for row in indexed(packed(members)).rows] == ["empty_caption"]
    (tmp_path / "by_key").mkdir()
    assert [row["reason"] for row in Indexed(tmp_path / "by_key", packed(members), caption_key="alt").rows] == ["empty_caption"]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_width_and_height_are_those_of_the_image_as_it_is_seen(indexed, kind, turn):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, kind, exif=exif)
    (row,) = indexed(packed([(f"0.{kind}", file.getvalue()), ("0.txt", b"a disc")])).rows
    assert (row["width"], row["height"]) == ((30, 40) if turn > 4 else (40, 30))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.txt", b" \n")], "the txt member is empty"),
        ([("0.txt", b"")], "the txt member is empty"),
        ([("0.cap", b"a dog")], "no txt and no json member"),
        ([("0.json", b'{"text": "a dog"}')], "has no caption; it has text"),
        ([("0.json", b'{"caption": null}')], "is empty"),
        ([("0.json", b'{"caption": NaN}')], "is empty"),
        ([("0.json", b'{"caption": []}')], "is empty"),
    ],
)
def test_an_image_without_a_caption_is_a_row_with_its_reason(indexed, image, members, message):
    (row,) = indexed(packed([("0.jpg", image), *members])).rows
    assert row["reason"] == "empty_caption"
    assert message in row["error_message"]


@pytest.mark.parametrize("content", [b"a caf\xe9", "a dog".encode("utf-16-le") + "ö".encode("utf-16-le"), b"\xff\xfea"])
def test_a_txt_member_in_another_encoding_is_a_row_with_its_reason(indexed, image, content):
    rows = indexed(packed([("0.jpg", image), ("0.txt", content), *pairs(image, "1")])).rows
    assert [(row["reason"], row["caption"]) for row in rows] == [("bad_caption", ""), ("success", "a disc")]
    assert "is not UTF-8" in rows[0]["error_message"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_wide_txt_member_without_a_mark_is_a_row_with_its_reason(indexed, image, encoding):
    (row,) = indexed(packed([("0.jpg", image), ("0.txt", "a red car".encode(encoding))])).rows
    assert (row["reason"], row["caption"]) == ("bad_caption", "")
    assert "UTF-16 without a byte order mark" in row["error_message"]


@pytest.mark.parametrize(
    ("value", "caption"), [('"a dog"', "a dog"), ('["", "a dog", null]', "a dog"), ("7", "7"), ("[7]", "7")]
)
def test_a_caption_in_the_json_member_is_text(indexed, image, value, caption):
    assert indexed(packed([("0.jpg", image), ("0.json", b'{"alt": %s}' % value.encode())]), caption_key="alt").samples() == [
        ("0", (caption,), image)
    ]


def test_a_list_of_captions_is_several_captions_for_training(indexed, image):
    members = [("0.jpg", image), ("0.json", b'{"alts": ["a dog", "two"]}'), ("1.jpg", image), ("1.json", b'{"alts": "one"}')]
    data_set = indexed(packed([*members, ("2.jpg", image)]), caption_key="alts")
    for place in ("caption", "json.alts"):
        assert data_set.samples((place,)) == [("0", ("a dog", "two"), image), ("1", ("one",), image)]


@pytest.mark.parametrize(
    ("value", "captions"),
    [(b'["a", 7, null, "b"]', ("a", "7", "b")), (b'["a", 0.5, NaN, ""]', ("a", "0.5")), (b'"a"', ("a",))],
)
def test_the_index_and_training_take_the_same_captions_from_a_json_member(indexed, image, value, captions):
    data_set = indexed(packed([("0.jpg", image), ("0.json", b'{"alt": %s}' % value)]), caption_key="alt")
    for place in ("caption", "json.alt"):
        assert data_set.samples((place,)) == [("0", captions, image)]


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (b'{"alt": ["a", {"b": "c"}]}', "has no caption in json.alt, which holds more than texts and numbers"),
        (b'{"alt": ["a", true]}', "has no caption in json.alt, which holds more than texts and numbers"),
        (b'{"alt": "a", "alt": "b"}', "holds alt twice in its json member"),
        (deep(200_000), "has no caption in json.alt"),
    ],
)
def test_a_json_member_that_training_cannot_take_captions_from_is_named(indexed, image, odd, problem):
    data_set = indexed(packed([*pairs(image, "0"), ("0.json", odd)]))
    with pytest.raises(ManifestError, match=f"sample 0:? {problem}"):
        data_set.samples(("json.alt",))


def test_a_name_twice_with_values_that_differ_is_no_value(indexed, image):
    odd = b'{"alt": "a", "n": 1, "alt": "b", "same": 2, "same": 2, "o": {"x": 1, "x": 2}}'
    (row,) = indexed(packed([*pairs(image, "0"), ("0.json", odd)])).rows
    assert ("alt" in row, row["n"], row["same"]) == (False, 1, 2)


def test_a_caption_that_is_there_twice_is_a_row_with_its_reason(indexed, image):
    (row,) = indexed(packed([("0.jpg", image), ("0.json", b'{"caption": "first", "caption": "second"}')])).rows
    assert (row["reason"], row["caption"]) == ("bad_caption", "")
    assert "holds caption twice" in row["error_message"]


@pytest.mark.parametrize(
    "value", [b'{"en": "a dog"}', b"true", b'[{"text": "a dog"}, "b"]', b'["a dog", true]', b'[["a dog"]]']
)
def test_a_caption_that_is_no_text_is_a_row_with_its_reason(indexed, image, value):
    (row,) = indexed(packed([("0.jpg", image), ("0.json", b'{"caption": %s}' % value)])).rows
    assert (row["reason"], row["caption"]) == ("bad_caption", "")


def test_images_that_are_none_are_rows_with_their_reason(indexed, image):
    members = [("0.jpg", b""), ("0.txt", b"x"), ("1.jpg", b"<html>"), ("1.txt", b"x"), *pairs(image, "2"), ("3.txt", b"x")]
    assert [reason for _, reason in indexed(packed(members)).reasons] == ["not_an_image", "not_an_image", "success", "no_image"]


def test_a_tar_of_an_early_img2dataset_is_read(indexed, image):
    values = {"url": "http://x/a.jpg", "caption": "a disc", "key": "000000000", "shard_id": 0, "status": "success"}
    values |= {"error_message": None, "width": 32, "height": 32, "exif": "{}", "original_width": 64, "original_height": 64}
    members = [
        ("000000000.jpg", image),
        ("000000000.json", json.dumps(values, indent=4).encode()),
        ("000000000.txt", b"a disc"),
    ]
    data_set = indexed(packed(members))
    assert data_set.samples() == [("000000000", ("a disc",), image)]
    (row,) = data_set.rows
    assert (row["url"], row["original_width"], row["shard_id"]) == ("http://x/a.jpg", 64, 0)


def test_fractions_beside_a_large_integer_are_kept(indexed, image):
    values = (0.31, -0.5, 9007199254740993, 2**63)
    members = [
        member
        for n, value in enumerate(values)
        for member in (*pairs(image, str(n)), (f"{n}.json", b'{"v": %s}' % str(value).encode()))
    ]
    assert [float(row["v"]) for row in indexed(packed(members)).rows] == [float(value) for value in values]


def test_the_message_about_a_page_in_place_of_an_image_is_the_same_in_each_run(indexed, image):
    (row,) = indexed(packed([("0.jpg", b"<html>login</html>"), ("0.txt", b"x")])).rows
    assert row["error_message"] == "an HTML page, not an image"

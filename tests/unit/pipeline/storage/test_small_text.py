"""Small texts are decoded, split and parsed alike wherever they come from. tests/world/test_small_texts.py has the forms."""

import pytest

from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.small_text import decode_text, parse_json, read_named_text, read_text, split_lines


def test_a_mark_is_no_part_of_the_text_and_an_encoding_is_followed():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert decode_text("犬\r\n".encode(encoding), "f") == "犬\r\n"
    assert decode_text(b"", "f") == ""
    with pytest.raises(ConfigError, match="f: line 2 is not UTF-8"):
        decode_text(b"a\n\xe9", "f")


def test_lines_end_where_a_line_ends_and_nowhere_else():
    assert split_lines("a\r\nb\rc\n\u2028d\x85e\n") == ["a", "b", "c", "d\x85e"]
    assert split_lines(" a \n\n\ufeffb\u200b \n \n\n") == ["a", "", "b"]
    assert split_lines("\u202ahttp://host/1.jpg\u202c\n\u2068b\u2069 \n") == ["http://host/1.jpg", "b"]
    assert split_lines("") == []


def test_a_file_is_read_or_refused_for_what_it_is(tmp_path, bucket):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx\n")
    storage = open_storage(str(tmp_path))
    assert read_text(storage, "a.txt") == "x\n"
    assert read_text(storage, "none.txt") is None
    assert read_text(open_storage(bucket), "none.txt") is None
    assert read_named_text("key", f"{tmp_path}/a.txt") == "x\n"
    with pytest.raises(ConfigError, match=rf"^key={tmp_path}/none\.txt: there is no such file"):
        read_named_text("key", f"{tmp_path}/none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_named_text("key", str(tmp_path))
    (tmp_path / "empty.txt").write_bytes(b"\n \n")
    with pytest.raises(ConfigError, match="is empty; write what it should hold, or unset key"):
        read_named_text("key", f"{tmp_path}/empty.txt")
    assert read_named_text("key", f"{tmp_path}/empty.txt", may_be_empty=True) == "\n \n"


def test_json_names_its_broken_line_and_a_key_that_occurs_twice():
    assert parse_json('{"a": [1, {"b": 2}]}', "f") == {"a": [1, {"b": 2}]}
    with pytest.raises(ConfigError, match="f: line 2 is not JSON"):
        parse_json('{"a": 1,\n b}', "f")
    with pytest.raises(ConfigError, match="f: holds the key 'b' twice"):
        parse_json('{"a": {"b": 1, "b": 2}}', "f")

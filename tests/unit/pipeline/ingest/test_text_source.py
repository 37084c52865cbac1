"""Text tables are opened as they are now, decompressed, from any place."""

import gzip
import os

import pytest

from pipeline.errors import InputError
from pipeline.ingest.text_source import BLOCK_BYTES, check_text, open_source


@pytest.mark.parametrize("name", ["t.csv", "T.CSV.GZ"])
def test_bytes_come_in_blocks_from_any_place(tmp_path, name):
    data = os.urandom(1 << 16) * 100
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("GZ") else data)
    source = open_source(str(tmp_path / name))
    assert source.kind == ".csv"
    for start in (0, 5, BLOCK_BYTES, len(data) - 1, len(data)):
        assert b"".join(source.blocks(start)) == data[start:]
    assert max(map(len, source.blocks())) < 2 * BLOCK_BYTES


def test_what_is_written_after_a_table_was_opened_is_not_read(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a\n")
    source = open_source(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_bytes(b"a\nb\n")
    assert b"".join(source.blocks()) == b"a\n"
    assert not source.settled


@pytest.mark.parametrize("head", [b"\xff\xfeu\x00", "url,caption\n".encode("utf-16-be"), b"PAR1", b"\x1f\x8b\x08"])
def test_what_is_no_text_is_refused_by_its_first_bytes(head):
    with pytest.raises(InputError, match=r"ingest\.input=t\.csv: is"):
        check_text("t.csv", head)


def test_a_damaged_gzip_stream_is_refused(tmp_path):
    data = bytearray(gzip.compress(os.urandom(5000)))
    data[-6] ^= 1
    (tmp_path / "t.csv.gz").write_bytes(data)
    with pytest.raises(InputError, match="the gzip stream is damaged"):
        list(open_source(str(tmp_path / "t.csv.gz")).blocks())


def test_a_gzip_file_that_was_just_begun_is_empty(tmp_path):
    for size in (0, 1, 5):
        (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n")[:size])
        assert b"".join(open_source(str(tmp_path / "t.csv.gz")).blocks()) == b""

"""A file over range reads behaves like a file, and fetches only what is read."""

import io

from pipeline.storage.range_file import RangeFile

DATA = bytes(range(100))


def ranges(start_and_length: list[tuple[int, int]]) -> RangeFile:
    def read(start: int, length: int) -> bytes:
        start_and_length.append((start, length))
        return DATA[start : start + length]

    return RangeFile(read, len(DATA))


def test_only_the_parts_that_are_read_are_fetched():
    fetched = []
    file = ranges(fetched)
    file.seek(-10, io.SEEK_END)
    assert file.read(4) == DATA[90:94]
    file.seek(2, io.SEEK_CUR)
    assert file.read(100) == DATA[96:]
    assert fetched == [(90, 4), (96, 4)]


def test_a_buffered_file_reads_everything_once():
    fetched = []
    assert io.BufferedReader(ranges(fetched), 64).read() == DATA
    assert sum(length for _, length in fetched) == len(DATA)


def test_nothing_is_behind_the_end():
    file = ranges([])
    file.seek(200)
    assert file.read(5) == b""

"""Both storages keep the same promises: whole or not at all, absent means put once."""

import contextlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import ReplacedError
from pipeline.storage.address import open_storage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    return open_storage(f"{request.getfixturevalue('bucket')}/some/prefix")


def test_what_is_written_is_read_back_whole_and_in_ranges(storage, tmp_path):
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read_range("a/b.bin", 3, 4) == b"3456"
    assert storage.read_range("a/b.bin", 8, 10) == b"89"
    assert storage.read_range("a/b.bin", 10, 5) == b""
    assert storage.size("a/b.bin") == 10
    assert storage.exists("a/b.bin")
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    storage.write_file("c.bin", tmp_path / "file")
    assert storage.size("c.bin") == 100_000


def test_an_open_object_that_is_replaced_is_never_read_as_a_mixture(storage):
    storage.write("x", b"a" * 100)
    with storage.open("x", 16) as file:
        assert file.read(16) == b"a" * 16
        storage.write("x", b"b" * 200)
        with contextlib.suppress(ReplacedError):
            assert file.read() == b"a" * 84
    with storage.open("x", 16) as file:
        assert file.read() == b"b" * 200
    with pytest.raises(FileNotFoundError):
        storage.open("y", 16)


def test_a_missing_object_is_named_in_full(storage):
    with pytest.raises(FileNotFoundError, match="gone"):
        storage.read("x/gone")
    assert storage.size("x/gone") is None
    storage.delete("x/gone")


def test_a_listing_is_sorted_and_knows_sizes(storage):
    for path in ("p/2", "p/10", "q/1", "p/1"):
        storage.write(path, path.encode())
    assert [item.path for item in storage.list("p/")] == ["p/1", "p/10", "p/2"]
    assert [item.size_bytes for item in storage.list("q")] == [3]
    assert list(storage.list("none/")) == []


def test_of_many_writers_exactly_one_puts_what_was_absent(storage):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda writer: storage.write_if_absent("one", f"{writer}".encode()), range(16)))
    assert sum(won) == 1
    assert storage.read("one") == f"{won.index(True)}".encode()
    assert [item.path for item in storage.list("")] == ["one"]


def test_a_storage_travels_to_other_processes(storage):
    storage.write("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


def test_a_writability_check_leaves_nothing_behind(storage):
    storage.check_writable()
    assert list(storage.list("")) == []

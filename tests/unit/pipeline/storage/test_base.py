"""Both storages keep the same promises: whole or not at all, absent means put once."""

import contextlib
import pickle
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import ReplacedError, StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.local import LocalStorage


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


def test_half_written_files_are_not_listed(tmp_path):
    storage = LocalStorage(str(tmp_path))
    (tmp_path / ".a.0.part").write_bytes(b"half")
    assert list(storage.list("")) == []


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        open_storage(str(tmp_path / "file" / "below")).check_writable()


def test_a_missing_bucket_is_named_with_the_remedy(bucket):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-here: there is no such bucket; create it"):
        open_storage("s3://no-such-bucket-here/x").check_writable()


def test_an_unreachable_endpoint_is_a_storage_error_that_holds_no_secret(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached") as error:
        open_storage(f"{bucket}/x").read("y")
    assert "planted-secret" not in str(error.value)


@pytest.mark.parametrize(("uri", "rule"), [("gs://bucket/x", "no storage that is supported"), ("s3://", "names no bucket")])
def test_an_address_that_is_no_storage_is_refused(uri, rule):
    with pytest.raises(StorageError, match=rule):
        open_storage(uri)


@pytest.mark.parametrize("scheme", ["s3", "https", "file"])
def test_an_address_with_a_password_is_refused_and_not_shown(scheme):
    with pytest.raises(
        StorageError, match=rf"^{scheme}://\*\*\*@place/x: an address must not hold a user name or a password"
    ) as error:
        open_storage(f"{scheme}://someone:pa55@w0rd@place/x")
    assert "w0rd" not in str(error.value)
    assert open_storage("s3://place/x@y/z").uri == "s3://place/x@y/z"


@pytest.mark.parametrize("endpoint", ["http://someone:pa55w0rd@127.0.0.1:9", "someone:pa55w0rd@127.0.0.1:9"])
@pytest.mark.parametrize("ask", [lambda storage: storage.read("y"), lambda storage: storage.read_range("y", 0, 1)])
def test_an_endpoint_with_a_password_is_refused_and_in_no_traceback(bucket, monkeypatch, endpoint, ask):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL: ") as error:
        ask(open_storage(f"{bucket}/x"))
    assert "pa55w0rd" not in "".join(traceback.format_exception(error.value))


def test_a_body_that_is_cut_is_asked_for_again(bucket, web, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    bodies = [b"0123", b"", b"0123456789"]

    def cut(handler):
        body = bodies.pop(0)
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    path = f"/{bucket.removeprefix('s3://')}/x"
    web.put(path, cut)
    assert open_storage(bucket).read("x") == b"0123456789"
    assert web.hits(path) == 3


def test_an_upload_that_is_refused_is_a_storage_error(bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="no-such-bucket-here"):
        open_storage("s3://no-such-bucket-here/x").write_file("y", tmp_path / "file")

"""Put-if-absent is tested before a job relies on it: what stores answer, odd file systems, and roots of a single writer."""

import errno
import json
import os
import shutil

import pytest

from pipeline.errors import ConfigError, StorageAwayError, StorageError
from pipeline.storage import base
from pipeline.storage.address import open_storage
from pipeline.storage.put_if_absent import MARK, PROBE, ensure_put_if_absent, find_problem
from tests.support.odd_s3 import answers, eventually, ignores, keeps, refuses_with, writes_all_the_same

KEY = "ingest.single_writer"


def root():
    return open_storage("s3://bucket/data")


def ensure(storage, writer=""):
    ensure_put_if_absent(storage, writer, KEY)


def test_a_store_that_keeps_the_promise_is_asked_three_times_and_later_twice(store):
    ensure(root())
    assert store.of_probe() == ["PUT", "PUT", "GET"]
    store.requests.clear()
    ensure(root())
    assert store.of_probe() == ["PUT", "GET"]
    assert list(store.objects) == [f"/bucket/data/{PROBE}"]  # one object, whatever the number of runs


BROKEN = {
    "ignores the header": (ignores, "it wrote over an object that was there"),
    "501": (answers(501, "NotImplemented"), r"it refused the condition \(HTTP 501 NotImplemented\)"),
    "400": (answers(400, "InvalidArgument"), r"it refused the condition \(HTTP 400 InvalidArgument\)"),
    "405": (answers(405, "MethodNotAllowed"), r"it refused the condition \(HTTP 405 MethodNotAllowed\)"),
    "403 for the condition alone": (answers(403, "AccessDenied"), r"it refused the condition \(HTTP 403 AccessDenied\)"),
    "412 and writes": (writes_all_the_same, "the first content is gone"),
    "eventual 412": (eventually(after=2), "it wrote over an object that was there"),
    "403 where an object is": (
        refuses_with(403, "AccessDenied"),
        "answered the second put of a key with HTTP 403 AccessDenied",
    ),
    "400 where an object is": (refuses_with(400, "BadRequest"), "answered the second put of a key with HTTP 400 BadRequest"),
    "412 always": (answers(412, "PreconditionFailed"), "it refused to write an object that was not there"),
}


@pytest.mark.parametrize(("store", "message"), BROKEN.values(), ids=BROKEN.keys(), indirect=["store"])
def test_a_store_that_breaks_the_promise_is_refused_by_name_with_a_remedy(store, message):
    with pytest.raises(StorageError, match=message) as raised:
        ensure(root())
    text = str(raised.value)
    assert f"{store.address} (server: OddStore/1.0) does not keep put-if-absent" in text
    assert "s3://bucket/data: " in text
    assert "use another store, or, if one job alone writes there, name it: ingest.single_writer=NAME" in text
    assert not isinstance(raised.value, StorageAwayError)  # trying again would not help
    assert not store.objects


@pytest.mark.parametrize("put", [ignores, answers(501, "NotImplemented")])
def test_a_refusal_takes_three_requests(store, put):
    store.put = put
    with pytest.raises(StorageError):
        ensure(root())
    assert store.of_probe() == ["PUT", "PUT", "DELETE"]


@pytest.mark.parametrize(
    "store", [refuses_with(409, "ConditionalRequestConflict"), refuses_with(304, ""), refuses_with(412, "")], indirect=True
)
def test_a_refusal_in_other_words_is_a_refusal_for_the_test_and_for_the_commit(store):
    ensure(root())
    assert len(store.of_probe()) == 3
    storage = root()
    assert storage.write_if_absent("a", b"mine")
    assert not storage.write_if_absent("a", b"theirs")
    assert storage.read("a") == b"mine"


@pytest.mark.parametrize("store", [refuses_with(500, "InternalError")], indirect=True)
def test_a_server_error_at_the_second_put_may_pass_and_is_explained(store):
    with pytest.raises(StorageAwayError, match="A store that always answers a second put so is of no use"):
        ensure(root())


@pytest.mark.parametrize("store", [answers(409, "OperationAborted")], indirect=True)
def test_a_store_that_says_busy_for_ever_is_given_up(store, monkeypatch):
    monkeypatch.setattr(base, "BUSY_PAUSE_S", 0)
    with pytest.raises(StorageAwayError, match=r"said 8 times that another write of it is in progress"):
        root().write_if_absent("a", b"")


def test_a_store_that_stops_keeping_it_is_refused_in_the_next_run(store):
    ensure(root())
    store.put = ignores
    with pytest.raises(StorageError, match="it wrote over an object that was there"):
        ensure(root())


def test_an_eventual_store_passes_no_later_run_though_its_probe_cannot_be_deleted(store):
    store.put = eventually(after=2)
    store.denied.append(("DELETE", ""))
    with pytest.raises(StorageError, match="it wrote over"):
        ensure(root())
    with pytest.raises(StorageError, match=f"delete s3://bucket/data/{PROBE} to test again"):
        ensure(root())
    store.objects.clear()
    ensure(root())


def test_keys_that_may_put_but_not_delete_suffice(store):
    store.denied.append(("DELETE", ""))
    ensure(root())
    ensure(root())
    assert "DELETE" not in store.of_probe()


def test_keys_that_may_not_write_the_probe_are_refused_as_keys(store):
    store.denied.append(("PUT", "_probe"))
    with pytest.raises(StorageError, match=rf"s3://bucket/data/{PROBE}: S3 refused \(AccessDenied\); check the keys"):
        ensure(root())
    store.denied[0] = ("GET", "_probe")
    with pytest.raises(StorageError, match=rf"s3://bucket/data/{PROBE}: S3 refused \(AccessDenied\); check the keys"):
        ensure(root())


def test_a_put_whose_answer_was_lost_and_that_was_repeated_is_no_broken_promise(store):
    def lost(server, key, content):
        keeps(server, key, content)
        return 412, "PreconditionFailed"

    store.put = lost
    ensure(root())


# ------------------------------------------------------------------------------------------------------------- local folders


def test_a_local_folder_holds_no_probe_afterwards(tmp_path):
    (tmp_path / "data").mkdir()
    ensure(open_storage(str(tmp_path / "data")))
    assert list((tmp_path / "data").rglob("*")) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EIO])
def test_a_file_system_without_hard_links_is_refused_by_name(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=rf"it refused the condition \({os.strerror(code)}\)") as raised:
        ensure(open_storage(str(tmp_path / "data")))
    assert "mounted at /" in str(raised.value)
    assert not list(tmp_path.rglob("*.*"))


def test_a_file_system_whose_links_are_copies_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", shutil.copyfile)
    with pytest.raises(StorageError, match="it wrote over an object that was there"):
        ensure(open_storage(str(tmp_path)))


def test_a_link_whose_answer_nfs_lost_was_made(tmp_path, monkeypatch):
    link = os.link

    def lost(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lost)
    storage = open_storage(str(tmp_path))
    assert storage.write_if_absent("a", b"mine")
    assert not storage.write_if_absent("a", b"theirs")
    assert storage.read("a") == b"mine"


def test_a_read_only_folder_is_refused_as_such(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written .*choose a writable folder"):
        ensure(open_storage(str(tmp_path / "file" / "data")))


# ------------------------------------------------------------------------------------------------------------- single writers


@pytest.mark.parametrize("store", [ignores, answers(501, "NotImplemented")], ids=["ignores", "501"], indirect=True)
def test_a_single_writer_marks_its_root_says_so_each_time_and_can_write(store, capsys):
    for _ in range(2):
        storage = root()
        ensure(storage, "nightly")
        said = capsys.readouterr().err
        assert f"s3://bucket/data: single writer nightly: {store.address} (server: OddStore/1.0) is not trusted" in said
        assert "never start a second one" in said
    assert json.loads(store.objects[f"/bucket/data/{MARK}"])["writer"] == "nightly"
    assert storage.write_if_absent("a", b"mine")
    assert not storage.write_if_absent("a", b"theirs")
    assert storage.read("a") == b"mine"


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_marked_root_refuses_jobs_that_do_not_know_it_or_have_another_name(store):
    ensure(root(), "nightly")
    with pytest.raises(ConfigError, match=r"is marked for a single writer, nightly .*ingest\.single_writer is not set"):
        ensure(root())
    with pytest.raises(ConfigError, match=r"is marked for a single writer, nightly .*this job says ingest\.single_writer=mine"):
        ensure(root(), "mine")
    store.put = keeps  # through another door that keeps the promise, the single writer still relies on being alone
    with pytest.raises(ConfigError, match="is marked for a single writer, nightly"):
        ensure(root())


def test_where_the_promise_is_kept_a_single_writer_is_refused(store):
    with pytest.raises(ConfigError, match=r"keeps put-if-absent, so any job may write .*remove the key"):
        ensure(root(), "nightly")
    assert f"/bucket/data/{MARK}" not in store.objects


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_root_that_holds_objects_is_marked_only_by_hand(store, capsys):
    root().write("manifests/00000001.json", b"{}")
    with pytest.raises(ConfigError, match=r"holds objects already \(manifests/00000001\.json\)") as raised:
        ensure(root(), "nightly")
    remedy = str(raised.value).partition("mark it yourself: write ")[2]
    content, _, address = remedy.partition(" to s3://bucket/data/")
    root().write(address, content.encode())
    ensure(root(), "nightly")
    assert "single writer nightly" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"writer": ""}', b'{"writer": 3}', b"\xff"])
def test_a_mark_without_a_name_is_refused_by_its_address(store, content):
    root().write(MARK, content)
    with pytest.raises(StorageError, match=rf"s3://bucket/data/{MARK}: marks a single writer but does not name it"):
        ensure(root(), "nightly")


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_second_writer_that_came_last_is_noticed(store, monkeypatch):
    storage = root()
    ensure(storage, "nightly")
    write = storage.write

    def and_another(path, data):
        write(path, data)
        write(path, b"theirs")

    monkeypatch.setattr(storage, "write", and_another)
    with pytest.raises(StorageError, match=r"s3://bucket/data/a: another process wrote it at the same time"):
        storage.write_if_absent("a", b"mine")


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_check_marks_nothing(store):
    storage = root()
    ensure_put_if_absent(storage, "nightly", KEY, leave_mark=False)
    assert storage.single_writer
    assert not store.objects


def test_of_a_real_server_no_problem_is_found(bucket):
    assert find_problem(open_storage(f"{bucket}/data")) == ""

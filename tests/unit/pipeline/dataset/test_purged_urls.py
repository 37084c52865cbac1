"""The list of purged URLs holds hashes, grows, and knows a URL whatever white space surrounds it."""

from pipeline.dataset.purged_urls import FOLDER, digest_of, is_purged, read_purged, record_purge
from pipeline.storage.address import open_storage


def test_what_was_purged_is_known_and_no_byte_names_it(tmp_path):
    storage = open_storage(str(tmp_path))
    assert read_purged(storage) == frozenset()
    record_purge(storage, ["http://e.org/1", " http://e.org/2\t", ""])
    record_purge(storage, ["http://e.org/2", "http://e.org/3"])
    record_purge(storage, ["http://e.org/1"])
    purged = read_purged(storage)
    assert [is_purged(f"http://e.org/{number} ", purged) for number in range(5)] == [False, True, True, True, False]
    assert not is_purged("", purged)
    assert digest_of(" a ") == digest_of("a")
    files = [storage.read(item.path) for item in storage.list(FOLDER)]
    assert (len(files), any(b"e.org" in data for data in files)) == (2, False)

"""A folder of byte ranges: shared by ranks, bounded, and never trusted without its checksum."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.data.range_cache import RangeCache


def must_not_be_called() -> bytes:
    raise AssertionError("the folder has it")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*-*"))


def test_what_was_fetched_once_comes_from_the_folder(tmp_path):
    cache = RangeCache(str(tmp_path), 1000)
    assert cache.get("tar/0-5", lambda: b"12345") == b"12345"
    assert cache.get("tar/0-5", must_not_be_called) == b"12345"
    assert RangeCache(str(tmp_path), 1000).get("tar/0-5", must_not_be_called) == b"12345"
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize("damage", [b"", b"1", b"123459999", b"12345"])
def test_a_damaged_entry_is_fetched_again(tmp_path, damage):
    cache = RangeCache(str(tmp_path), 1000)
    cache.get("tar/0-5", lambda: b"12345")
    (tmp_path / "tar" / "0-5").write_bytes(damage)
    assert cache.get("tar/0-5", lambda: b"12345") == b"12345"
    assert cache.get("tar/0-5", lambda: b"12345") == b"12345"
    assert cache.damaged <= 1


def test_what_does_not_fit_is_not_kept_and_nothing_makes_room_for_it(tmp_path):
    cache = RangeCache(str(tmp_path), 40)
    for number in range(9):
        assert cache.get(f"tar/{number}-", lambda: b"0123456789") == b"0123456789"
    assert size_of(tmp_path) == 28
    assert cache.get("tar/0-", must_not_be_called)
    assert cache.get("tar/1-", must_not_be_called)


def test_a_nearly_full_folder_makes_room_for_the_shards_of_this_run(tmp_path):
    cache = RangeCache(str(tmp_path), 60)
    for number in range(4):
        cache.get(f"{'old' if number % 2 else 'new'}/{number}-", lambda: b"0123456789")
    again = RangeCache(str(tmp_path), 60, wanted={"new"})
    assert again.get("new/0-", must_not_be_called)
    assert again.get("new/2-", must_not_be_called)
    assert not list((tmp_path / "old").iterdir())
    again.get("new/9-", lambda: b"0123456789")
    assert again.get("new/9-", must_not_be_called)


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path, monkeypatch):
    cache = RangeCache(str(tmp_path), 1000)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cache.get("tar/0-5", lambda: b"12345") == b"12345"
    assert not list(tmp_path.rglob("*0-5*"))


RANK = """
import sys
from training.data.range_cache import RangeCache
cache = RangeCache(sys.argv[1], 60_000)
for round in range(3):
    for number in range(100):
        content = number.to_bytes(2, "big") * 500
        assert cache.get(f"tar/{number}-", lambda: content) == content
"""


def test_ranks_that_share_a_folder_keep_its_limit(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path)]) for _ in range(3)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0, 0]
    used = size_of(tmp_path)
    assert 50_000 < used <= 60_000
    assert int((tmp_path / "usage").read_text()) == used
    assert not list(tmp_path.rglob(".*-*")), "no half-written entry remains"

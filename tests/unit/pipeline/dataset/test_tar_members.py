"""Members are grouped by key as webdataset groups them, and names without a key never separate a sample."""

import io
import tarfile

import pytest

from pipeline.dataset.tar_members import Skipped, as_text, group_members, may_be_of_a_sample, split_key


def packed(*names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    file.seek(0)
    return tarfile.open(fileobj=file)


@pytest.mark.parametrize(
    ("name", "parts"), [("a/b.c/d.JPG", ("a/b.c/d", "jpg")), ("k.seg.png", ("k", "seg.png")), ("k", ("k", ""))]
)
def test_a_key_ends_at_the_first_dot_after_the_last_slash(name, parts):
    assert split_key(name) == parts


@pytest.mark.parametrize(
    "name",
    [
        *("._a.jpg", "x/._a.jpg", ".DS_Store", "README", "__MACOSX/a.jpg", "x/__MACOSX/a.jpg"),
        *("PaxHeaders.12/a.jpg", "./PaxHeader/a.jpg", "__meta__/a.jpg", "__index__"),
    ],
)
def test_a_name_without_a_key_is_of_no_sample(name):
    assert not may_be_of_a_sample(name)


@pytest.mark.parametrize("name", ["a.jpg", "x.y/a.jpg", "../a.jpg", "/x/a.jpg", "__a.jpg", "a..jpg", "a.", "MACOSX/a.jpg"])
def test_a_name_with_a_key_may_be_of_a_sample(name):
    assert may_be_of_a_sample(name)


def test_skipped_members_are_counted_and_separate_nothing():
    skipped = Skipped()
    with packed("a.jpg", "._a.txt", "a.txt", "b.jpg", "a.json") as tar:
        groups = [(group.key, group.number, [*group.members]) for group in group_members(tar, lambda *_: True, skipped)]
    assert groups == [("a", 0, ["jpg", "txt"]), ("b", 0, ["jpg"]), ("a", 0, ["json"])]
    assert (skipped.counts, skipped.first) == ({"files without a key": 1}, {"files without a key": "._a.txt"})


def test_repeated_members_are_groups_of_their_own():
    with packed("a.jpg", "a.JPG", "a.txt", "a.jpg", "a.txt") as tar:
        groups = [(group.number, [*group.members]) for group in group_members(tar, lambda _, number, info: number == 0)]
    assert groups == [(0, ["jpg", "txt"]), (1, ["jpg", "txt"]), (2, ["jpg"])]


def test_names_that_are_not_utf8_stay_different():
    assert as_text("caf\udce9") == "caf\\xe9"
    assert as_text("café") == "café"

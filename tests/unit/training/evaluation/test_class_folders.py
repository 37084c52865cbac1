"""Class folders are found on a disk and in object storage. tests/world/test_labels.py has the layouts that people have."""

import pytest

from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.label_inputs import png, write_folders
from training.evaluation.class_folders import find_class_folders, is_data, list_paths


def test_class_folders_in_object_storage_are_those_on_a_disk(tmp_path, bucket):
    uri = write_folders(tmp_path / "pets", "b/2.png", "b/inner/1.JPG", "a/x.png", "c/notes.txt", ".git/x.png", "stray.png")
    far, near = open_storage(f"{bucket}/pets"), open_storage(uri)
    for item in near.list(""):
        far.write(item.path, png())
    found = [find_class_folders("key=x", storage, list_paths(storage, "key=x")) for storage in (near, far)]
    assert found[0] == found[1]
    assert found[0].images == ["a/x.png", "b/2.png", "b/inner/1.JPG"]
    assert found[0].empty == ("c",)
    assert len(found[0].notes) == 3


def test_files_without_folders_are_no_classes(tmp_path):
    storage = open_storage(write_folders(tmp_path / "pets", "1.png", "docs/readme.md"))
    assert find_class_folders("key=x", storage, list_paths(storage, "key=x")) is None
    assert list_paths(open_storage(str(tmp_path / "none")), "key=x") == []


def test_data_are_neither_hidden_nor_made_by_a_system():
    assert all(map(is_data, ("a/b.png", "./a.png", "a.b/c..png", "Thumbs/1.png")))
    assert not any(map(is_data, (".a/b.png", "a/.b.png", "a/Thumbs.db", "__MACOSX/a/b.png", "a/@eaDir/b.png", "a/DESKTOP.INI")))


def test_a_link_around_itself_ends_and_one_to_a_sibling_counts(tmp_path):
    write_folders(tmp_path / "pets", "cat/1.png", "dog/1.png")
    (tmp_path / "pets" / "cat" / "up").symlink_to("..")
    (tmp_path / "pets" / "kitty").symlink_to("cat")
    storage = open_storage(str(tmp_path / "pets"))
    assert list_paths(storage, "key=x") == ["cat/1.png", "dog/1.png", "kitty/1.png"]
    (tmp_path / "pets" / "dog" / "2.png").symlink_to("gone.png")
    with pytest.raises(ConfigError, match=r"dog/2\.png is a link to gone\.png, which does not exist"):
        list_paths(storage, "key=x")

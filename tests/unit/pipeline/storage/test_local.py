"""Files appear whole, and a folder that cannot be written is named."""

from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.local import LocalStorage


def test_half_written_files_are_not_listed(tmp_path):
    storage = LocalStorage(str(tmp_path))
    (tmp_path / ".a.0.part").write_bytes(b"half")
    assert list(storage.list("")) == []


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        open_storage(str(tmp_path / "file" / "below")).check_writable()


def test_a_folder_that_another_process_keeps_removing_is_made_a_bounded_number_of_times(tmp_path, monkeypatch):
    made = []

    def removed_at_once(path, **_options):
        made.append(path)

    monkeypatch.setattr(Path, "mkdir", removed_at_once)
    with pytest.raises(StorageError, match="No such file or directory"):
        LocalStorage(str(tmp_path)).write("a/b", b"")
    assert 1 < len(made) < 1000

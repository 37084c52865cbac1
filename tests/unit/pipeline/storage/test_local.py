"""Files appear whole, and a folder that cannot be written is named."""

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

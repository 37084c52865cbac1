"""Parts that `::` joins, each with what it skips; tests/world/test_tars.py has braces."""

import pytest

from pipeline.errors import InputError
from pipeline.versions.tar_patterns import named_tars


@pytest.fixture
def folder(tmp_path):
    for name in ("a.tar", "b.tar", "._b.tar", "own/shards/c.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_tar_that_two_parts_name_is_read_once_and_said(folder, caplog):
    own = f"{folder}/own/shards/"
    assert named_tars(f"{folder}/a.tar::{folder}/*.tar", own) == [f"{folder}/a.tar", f"{folder}/b.tar"]
    assert f"1 tars are named twice in index.input, such as {folder}/a.tar" in caplog.text


def test_hidden_tars_and_the_data_sets_own_are_no_input(folder, caplog):
    assert named_tars(str(folder), f"{folder}/own/shards/") == [f"{folder}/a.tar", f"{folder}/b.tar"]
    assert "._b.tar" in caplog.text


@pytest.mark.parametrize("part", ["", "nothing/here", "{x..y}.tar"])
def test_a_part_that_names_no_tar_is_refused(folder, part):
    with pytest.raises(InputError, match=r"index\.input"):
        named_tars(f"{folder}/a.tar::{part}", "none/")

"""jobs/demo.py without training: what it writes for another web server, and what it never empties."""

import csv

import pytest

from jobs.cli.config import load_config
from jobs.demo import MARKER, _start_afresh, arguments, job
from jobs.demonstration.drawings import NUM_BROKEN, render_pairs
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage


def test_images_for_another_web_server_are_those_of_the_table_and_nothing_else_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = ["--concepts", "3", "--pictures-only", "images", "--served-at", "http://127.0.0.1:1234/"]
    job(load_config("demo"), arguments().parse_args(told))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    with (tmp_path / "images" / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = render_pairs(3)
    trained = [pair for pair in pairs if pair.split == "train"]
    assert [row["caption"] for row in rows[: len(trained)]] == [pair.caption for pair in trained]
    assert len(rows) == len(trained) + NUM_BROKEN
    names = [row["url"].removeprefix("http://127.0.0.1:1234/") for row in rows[: len(trained)]]
    assert [(tmp_path / "images" / name).read_bytes() for name in names] == [pair.png for pair in trained]
    assert (tmp_path / "images" / "html.png").read_bytes().startswith(b"<!doctype html>")
    assert not (tmp_path / "images" / "gone-1.png").exists()


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    storage = open_storage(str(tmp_path / "mine"))
    storage.write("precious", b"1")
    with pytest.raises(ConfigError, match="not from an earlier demo"):
        _start_afresh(storage)
    assert storage.read("precious") == b"1"
    storage.write(MARKER, b"")
    _start_afresh(storage)
    assert [item.path for item in storage.list("")] == [MARKER]

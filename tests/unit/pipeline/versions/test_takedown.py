"""Removed samples are found in every version, and their bytes are deleted."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.config import CurateConfig
from pipeline.dataset.manifest import commit_choice, read_manifest, read_samples
from pipeline.storage.address import open_storage
from pipeline.versions.curation import Rules, select
from pipeline.versions.takedown import _names_any, find_holders, purge, runs_on


@pytest.fixture
def storage(make_data_set, tmp_path):
    """Two shards; version 2 has dropped the first sample of the first shard."""
    storage = open_storage(make_data_set(str(tmp_path / "data"), (4, 3)))
    first = read_manifest(storage)
    partition = first.partitions[0]
    chosen = select(storage, partition.shards[0], ["where", "", "", ""])
    commit_choice(storage, first, [partition.model_copy(update={"shards": (chosen,)})])
    return storage


def test_a_sample_is_found_where_readers_saw_it_and_where_its_bytes_are(storage):
    shard = read_manifest(storage, 1).shards[0]
    key = read_samples(storage, shard, ["key"])["key"][0].as_py()
    holders = find_holders(storage, Rules(CurateConfig(), removed=frozenset([key])))
    assert (holders.versions, holders.shards) == ([1], frozenset([shard.name]))


def test_a_purge_leaves_no_byte_of_a_sample_and_all_others(storage):
    shard = read_manifest(storage, 1).shards[0]
    key = read_samples(storage, shard, ["key"])["key"][1].as_py()
    rules = Rules(CurateConfig(), removed=frozenset([key]))
    manifest = purge(storage, rules, find_holders(storage, rules))
    assert (manifest.version, manifest.num_samples) == (3, 5)
    assert not storage.exists(shard.tar_path)
    keys = [key for one in manifest.shards for key in read_samples(storage, one, ["key"])["key"].to_pylist()]
    assert key not in keys


def test_runs_on_a_version_are_found_by_their_checkpoints(tmp_path):
    for run, version in (("a", 1), ("b", 2)):
        folder = tmp_path / run / "checkpoints" / "1"
        folder.mkdir(parents=True)
        content = {"data_sets": [{"uri": "/data", "version": version}]}
        (folder / "checkpoint.json").write_text(json.dumps(content))
    assert list(runs_on(str(tmp_path), "/data", [1, 3])) == [("a", 1)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["http://e.org/1"]),
        pa.array(["http://e.org/1"], pa.large_string()),
        pa.array([b"http://e.org/1"]),
        pa.array(["http://e.org/1"]).dictionary_encode(),
    ],
)
def test_a_removed_url_is_found_in_text_of_any_type(column):
    names = frozenset(["http://e.org/1"])
    assert _names_any(pa.table({"n": [1], "u": column}), names)
    assert not _names_any(pa.table({"u": column.slice(1)}), names)


def test_lines_are_found_in_shards_of_any_version_and_in_tables_of_rows_that_wait(storage):
    shard = read_manifest(storage, 1).shards[0]
    dropped = read_samples(storage, shard, ["key"])["key"][0].as_py()
    (waiting,) = ["http://e.org/waits"]
    table = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"url": [waiting]}), table)
    storage.write("inputs/0123.parquet", table.getvalue().to_pybytes())
    rules = Rules(CurateConfig(), removed=frozenset([dropped, waiting, "http://e.org/mistyped", "http://e.org/3"]))
    assert find_holders(storage, rules).found == {dropped, waiting, "http://e.org/3"}, "row 3 failed, and has a URL"


def test_a_purge_that_was_killed_is_finished_by_the_next(storage, monkeypatch):
    shard = read_manifest(storage, 1).shards[0]
    key = read_samples(storage, shard, ["key"])["key"][1].as_py()
    rules = Rules(CurateConfig(), removed=frozenset([key]))
    delete = type(storage).delete

    def killed(self, path):
        delete(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            purge(storage, rules, find_holders(storage, rules))
    assert find_holders(storage, rules).found == {key}
    purge(storage, rules, find_holders(storage, rules))
    assert not [item.path for item in storage.list("shards/") if item.path.startswith(f"shards/{shard.name}")]

"""Removed samples are found in every version, and their bytes are deleted."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.config import CurateConfig, IndexConfig
from pipeline.dataset.manifest import commit, commit_choice, read_manifest, read_samples, read_sidecar
from pipeline.dataset.purged_urls import is_purged, read_purged
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.curation import Rules, judge, select
from pipeline.versions.foreign_tars import index_tar
from pipeline.versions.rewrite import rewrite
from pipeline.versions.takedown import _names_any, find_holders, purge, read_runs, runs_on
from tests.support.tars import packed, pairs


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


def checkpoint(folder, **data_set):
    (folder / "checkpoints" / "1").mkdir(parents=True)
    (folder / "checkpoints" / "1" / "checkpoint.json").write_text(json.dumps({"data_sets": [data_set]}))


def test_runs_are_found_by_their_checkpoints_whatever_path_led_to_the_data_set(storage, tmp_path):
    identity = read_manifest(storage, 1).identity
    (tmp_path / "link").symlink_to(storage.uri)
    checkpoint(tmp_path / "runs" / "a", uri=storage.uri, version=1)
    checkpoint(tmp_path / "runs" / "b", uri=storage.uri, version=2)
    checkpoint(tmp_path / "runs" / "dots", uri=f"{storage.uri}/../data", version=1, identity="0")
    checkpoint(tmp_path / "runs" / "link", uri=f"{tmp_path}/link", version=1, identity=identity)
    checkpoint(tmp_path / "runs" / "moved", uri="/elsewhere", version=7, identity=identity)
    checkpoint(tmp_path / "runs" / "other", uri="/elsewhere", version=1, identity="0")
    runs = read_runs(str(tmp_path / "runs"))
    assert list(runs_on(runs, storage, [1])) == [("a", 1), ("dots", 1), ("link", 1), ("moved", 1)]
    assert list(runs_on(read_runs(str(tmp_path / "runs")), open_storage(f"{storage.uri}/../data"), [2])) == [("b", 2)]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--runs .*rnus: holds no run with a checkpoint; name the folder of run folders"):
        read_runs(str(tmp_path / "rnus"))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["http://e.org/1"]),
        pa.array(["http://e.org/1"], pa.large_string()),
        pa.array([b"http://e.org/1"]),
        pa.array(["http://e.org/1"]).dictionary_encode(),
        pa.array([" http://e.org/1\t"]),
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
    assert find_holders(storage, rules).found == {key}, "a list that was purged matches again, so that a job may repeat it"


def test_a_purge_lists_the_urls_of_its_samples(storage):
    shard = read_manifest(storage, 1).shards[0]
    sample = read_samples(storage, shard, ["key", "url"]).to_pylist()[1]
    rules = Rules(CurateConfig(), removed=frozenset([sample["key"]]))
    purge(storage, rules, find_holders(storage, rules))
    assert is_purged(sample["url"], read_purged(storage))
    again = find_holders(storage, rules)
    assert (again.found, again.shards) == ({sample["key"]}, frozenset()), "known, and nothing is left to rewrite"
    assert purge(storage, rules, again).version == 3
    assert not is_purged("http://e.org/none", read_purged(storage))


def test_lines_that_name_rows_without_a_sample_are_told_apart(storage):
    rules = Rules(CurateConfig(), removed=frozenset(["http://e.org/3", "http://e.org/1"]))
    assert find_holders(storage, rules).waiting == {"http://e.org/3"}, "row 3 failed in both shards"


def test_white_space_around_a_url_in_a_sidecar_does_not_hide_it(storage):
    manifest = read_manifest(storage)
    shard = manifest.shards[1]
    table = read_sidecar(storage, shard)
    urls = pa.array([f" {url} " for url in table["url"].to_pylist()])
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table.set_column(table.column_names.index("url"), "url", urls), sink)
    storage.write(shard.sidecar_path, sink.getvalue().to_pybytes())
    digest = hashlib.sha256(sink.getvalue().to_pybytes()).hexdigest()
    (_, partition) = manifest.partitions
    shard = shard.model_copy(update={"sidecar_sha256": digest})
    base = commit_choice(storage, manifest, [partition.model_copy(update={"shards": (shard,)})])
    rules = Rules(CurateConfig(), removed=frozenset(["http://e.org/2"]))
    assert judge(storage, shard, rules)[0] == ["", "", "removed"]
    rest = purge(storage, rules, find_holders(storage, rules))
    assert rest.num_samples == base.num_samples - 2, "one of each shard"


def test_objects_that_no_version_names_are_said_and_stay(storage, make_data_set, tmp_path):
    """An ingestion that was killed before its commit leaves them, and the next run adopts them."""
    other = open_storage(make_data_set(str(tmp_path / "other"), (2,), seed=1))
    (shard,) = read_manifest(other).shards
    for path in (shard.tar_path, shard.sidecar_path):
        storage.write(path, other.read(path))
    storage.write("shards/unfinished.tar", b"")
    rules = Rules(CurateConfig(), removed=frozenset(["http://e.org/1"]))
    holders = find_holders(storage, rules)
    assert (holders.uncommitted, holders.unsearched) == ({shard.name}, {"unfinished"})
    purge(storage, rules, holders)
    assert storage.exists(shard.tar_path)
    holders = find_holders(storage, rules)
    assert (holders.shards, holders.uncommitted) == ({shard.name}, {shard.name})


def test_a_tar_that_was_indexed_in_place_is_refused_before_anything_is_listed(tmp_path, draw_shape):
    (tmp_path / "0.tar").write_bytes(packed(pairs(draw_shape("red", "disc", 0), "0")))
    storage = open_storage(str(tmp_path / "indexed"))
    commit(storage, [index_tar(str(tmp_path / "0.tar"), IndexConfig(output=storage.uri))])
    rules = Rules(CurateConfig(), removed=frozenset(["0"]))
    with pytest.raises(InputError, match=r"--purge: .*0\.tar was indexed in place"):
        purge(storage, rules, find_holders(storage, rules))
    assert not read_purged(storage)


def test_a_tar_that_was_indexed_in_place_is_named_after_its_samples_were_copied(tmp_path, draw_shape):
    (tmp_path / "0.tar").write_bytes(packed(pairs(draw_shape("red", "disc", 0), "0", "1")))
    storage = open_storage(str(tmp_path / "indexed"))
    manifest = commit(storage, [index_tar(str(tmp_path / "0.tar"), IndexConfig(output=storage.uri))])
    (partition,) = manifest.partitions
    copy = rewrite(storage, list(manifest.shards), "copy-000")
    commit_choice(storage, manifest, [partition.model_copy(update={"shards": (copy,)})])
    rules = Rules(CurateConfig(), removed=frozenset(["0"]))
    assert find_holders(storage, rules).in_place == {f"{tmp_path}/0.tar"}
    (tmp_path / "0.tar").unlink()
    holders = find_holders(storage, rules)
    assert holders.in_place == frozenset(), "who deletes the tar, too, has nothing left"
    assert purge(storage, rules, holders).num_samples == 1

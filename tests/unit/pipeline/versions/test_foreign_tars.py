"""Tars of other tools become a data set that names the place of every member."""

import io
import tarfile

import pytest

from pipeline.config import IndexConfig
from pipeline.dataset.manifest import commit, locate_tar, read_samples, read_sidecar
from pipeline.dataset.purged_urls import record_purge
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.foreign_tars import find_replaced, index_tar, plan_index
from tests.support.tars import packed


@pytest.fixture
def config(tmp_path, draw_shape):
    image = draw_shape("red", "disc", 0)
    members = [("a.jpg", image), ("a.txt", b"a disc"), ("b.png", image), ("b.json", b'{"caption": "another", "width": 7}')]
    members += [("c.txt", b"no image"), ("d.jpg", b"broken"), ("d.txt", b"a broken one"), ("e.jpg", image)]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return IndexConfig(input=str(tmp_path / "t.tar"), output=str(tmp_path / "data"))


def test_every_member_is_read_by_its_offset_and_every_key_has_a_reason(config, draw_shape):
    storage = open_storage(config.output)
    record = index_tar(config.input, config)
    (shard,) = record.shards
    reasons = dict(zip("abcde", read_sidecar(storage, shard)["reason"].to_pylist(), strict=True))
    assert reasons == {"a": "success", "b": "success", "c": "no_image", "d": "not_an_image", "e": "empty_caption"}
    rows = read_samples(storage, shard, ["caption", "jpg_offset", "jpg_size"]).to_pylist()
    assert [row["caption"] for row in rows] == ["a disc", "another"]
    tar_storage, path = locate_tar(storage, shard)
    for row in rows:
        assert tar_storage.read_range(path, row["jpg_offset"], row["jpg_size"]) == draw_shape("red", "disc", 0)


def test_a_tar_that_is_held_is_not_planned_again(config):
    assert plan_index(config, None) == [config.input]
    manifest = commit(open_storage(config.output), [index_tar(config.input, config)])
    assert plan_index(config, manifest) == []


def test_a_truncated_tar_is_named(config, tmp_path):
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"t\.tar: is not a complete tar"):
        index_tar(config.input, config)


def test_a_tar_in_a_bucket_is_indexed_and_read_like_one_on_disk(config, bucket, tmp_path):
    open_storage(f"{bucket}/tars").write_file("t.tar", tmp_path / "t.tar")
    here, there = index_tar(config.input, config), IndexConfig(input=f"{bucket}/tars", output=f"{bucket}/data")
    (tar,) = plan_index(there, None)
    record = index_tar(tar, there)
    assert (record.rows_sha256, record.counts) == (here.rows_sha256, here.counts)
    manifest = commit(open_storage(there.output), [record])
    assert find_replaced(there, manifest) == []
    open_storage(f"{bucket}/tars").write("t.tar", b"other")
    assert len(find_replaced(there, manifest)) == 1


def test_a_tar_that_is_gone_is_named(config, tmp_path):
    (tmp_path / "t.tar").unlink()
    with pytest.raises(InputError, match=r"t\.tar: cannot be read"):
        index_tar(config.input, config)


def test_a_url_that_was_purged_is_no_sample_of_another_tar(tmp_path, draw_shape):
    members = [(f"{key}.jpg", draw_shape("red", "disc", 0)) for key in "ab"]
    members = [
        *members,
        ("a.json", b'{"caption": "a", "url": "http://e.org/a "}'),
        ("b.json", b'{"caption": "b", "url": "http://e.org/b"}'),
    ]
    (tmp_path / "t.tar").write_bytes(packed(sorted(members)))
    config = IndexConfig(input=str(tmp_path / "t.tar"), output=str(tmp_path / "data"))
    storage = open_storage(config.output)
    record_purge(storage, ["http://e.org/a"])
    manifest = commit(storage, [index_tar(config.input, config)])
    (shard,) = manifest.shards
    assert read_samples(storage, shard, ["key"])["key"].to_pylist() == ["b"]
    assert manifest.partitions[0].counts == {"removed": 1, "success": 1}

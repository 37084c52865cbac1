"""Tars of photographs for the benchmarks that read."""

import pytest

from jobs.benchmarks.stored_tars import index, s3_server, upload, write_tars
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from training.data.shard_reader import ShardReader


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "tars"
    size = write_tars(folder, ["one", "two", "three"], shard_samples=2)
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    return folder


def test_a_sample_for_each_caption_is_written_and_indexed(tars, tmp_path):
    index(str(tars), str(tmp_path / "data"))
    storage = open_storage(str(tmp_path / "data"))
    manifest = read_manifest(storage)
    assert [shard.num_samples for shard in manifest.shards] == [2, 1]
    samples = ShardReader(storage, manifest).read(0, 0, 2)
    assert [sample.caption for sample in samples] == ["one", "two"]
    assert samples[0].image.startswith(b"\xff\xd8")


def test_tars_on_the_s3_server_are_indexed_where_they_are(tars, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "test")  # so that the server's settings are taken back
    with s3_server() as server:
        addresses = upload(tars, server)
        index(addresses["tars"], addresses["indexed"])
        assert read_manifest(open_storage(addresses["indexed"])).num_samples == 3

"""A rank reads the samples of its steps once, ahead of need, and nothing else, from whatever storage."""

import collections
import itertools

import pytest
import torch

from pipeline.errors import StorageError
from pipeline.storage.address import open_storage
from tests.support.flaky_s3 import flaky_s3
from tests.support.loaders import BATCH, batches, open_loader, order_of
from training.config import DataConfig
from training.data.data_sets import open_data_sets
from training.data.order_layout import locate_sample
from training.data.prefetcher import SampleFetcher
from training.data.shard_reader import ShardReader


def reads_of(monkeypatch, *arguments, **options):
    """(shard, position) of every sample that was read, by a loader that gives out so many batches."""
    reads = []
    read_run = ShardReader.read_run

    def recorded(self, shard, positions, run=None):
        reads.extend((shard, position) for position in positions)
        return read_run(self, shard, positions, run)

    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "read_run", recorded)
        batches(*arguments, **options)
    return reads


def test_a_resume_reads_nothing_that_it_skips_and_nothing_twice(make_data_set, tmp_path, monkeypatch):
    uri = make_data_set(str(tmp_path / "set"), (240, 95, 265))
    order = order_of(DataConfig(uri=uri))
    assert order.steps_per_epoch == 50
    reads = reads_of(monkeypatch, uri, 2, start=4 * BATCH)
    seen = {locate_sample(order.shards, index) for step in range(4) for index in order.step_samples(0, step).tolist()}
    due = {locate_sample(order.shards, index) for step in (4, 5) for index in order.step_samples(0, step).tolist()}
    assert due <= set(reads)
    assert not seen & set(reads)
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_read_no_sample_in_common(make_data_set, tmp_path, monkeypatch, world_size):
    uri = make_data_set(str(tmp_path / "set"), (240, 95, 265))
    ranks = [set(reads_of(monkeypatch, uri, 20, rank, world_size)) for rank in range(world_size)]
    assert sum(len(reads) for reads in ranks) == len(set.union(*ranks))


def test_the_cache_saves_later_epochs_the_reading(make_data_set, bucket, tmp_path, monkeypatch):
    from pipeline.storage.s3 import S3Storage

    reads = []
    read_range = S3Storage.read_range
    monkeypatch.setattr(S3Storage, "read_range", lambda self, *place: (reads.append(place), read_range(self, *place))[1])
    uri, options = make_data_set(f"{bucket}/set"), {"cache_dir": str(tmp_path / "cache"), "read_threads": 1}
    expected = batches(uri, 15)
    without, _ = len(reads), reads.clear()
    found = batches(uri, 15, **options)
    assert len(reads) <= 24 < without, "each run was read once"
    reads.clear()
    for entry in list((tmp_path / "cache").rglob("*-*"))[:3]:
        entry.write_bytes(entry.read_bytes()[:-9] + b"damaged!!")
    again = batches(uri, 15, **options)
    assert 0 < len(reads) <= 3
    for one, two, three in zip(expected, found, again, strict=True):
        assert one.keys == two.keys == three.keys
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.images, three.images)


def test_s3_that_refuses_delays_and_cuts_gives_the_same_batches(make_data_set, bucket, s3_endpoint, monkeypatch):
    uri = make_data_set(f"{bucket}/set")
    expected = batches(uri, 10)
    with flaky_s3(s3_endpoint, every_503=7, every_cut=5, delay_s=0.02) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.address)
        found = batches(uri, 10)
    assert flaky.refused >= 3
    assert flaky.cut >= 3
    for one, two in zip(expected, found, strict=True):
        assert one.keys == two.keys
        assert torch.equal(one.images, two.images)


def test_s3_that_is_gone_ends_the_run_and_names_the_shard(make_data_set, bucket, monkeypatch):
    uri = make_data_set(f"{bucket}/set")
    loader = open_loader(DataConfig(uri=uri))
    iterator = iter(loader)
    next(iterator)
    monkeypatch.setattr("pipeline.storage.s3.S3Storage.read_range", _unreachable)
    with pytest.raises(StorageError, match=r"s3://.*shards/.*: S3 cannot be reached"):
        collections.deque(itertools.islice(iterator, 100))
    loader.close()


def _unreachable(self, path, start, length):
    from botocore.exceptions import EndpointConnectionError

    with self._errors(path):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")


def test_samples_are_handed_out_in_the_order_of_each_step(data_set):
    config = DataConfig(uri=data_set)
    order, data_sets = order_of(config), open_data_sets(config)
    fetcher = SampleFetcher(data_sets, order, (3, 9), config, samples_seen=2 * BATCH)
    reader = ShardReader(data_sets[0].storage, data_sets[0].manifest)
    try:
        for step in (2, 3, 4):
            places = [locate_sample(order.shards, index) for index in order.step_samples(0, step, 3, 9).tolist()]
            expected = [reader.read(shard, position, position + 1)[0] for shard, position in places]
            assert fetcher.step(0, step)[1] == expected
    finally:
        fetcher.close()


def test_substitutes_are_whole_samples_and_the_same_for_any_slice(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    config = DataConfig(uri=uri)
    order, data_sets = order_of(config), open_data_sets(config)
    open_storage(uri).local_path(data_sets[0].manifest.shards[1].tar_path).unlink()
    found = []
    for bounds in ((0, 12), (4, 8)):
        fetcher = SampleFetcher(data_sets, order, bounds, config, 0)
        found.append([sample.key for sample in itertools.islice(fetcher.substitutes(0, 25), 20)])
        fetcher.close()
    assert found[0] == found[1]
    assert len(found[0]) == 20

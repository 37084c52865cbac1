"""Batches follow the global order at any world size, resume exactly, and read only what they need."""

import threading

import pytest
import torch

from pipeline.manifest import ManifestError, read_manifest
from pipeline.storage import open_storage
from training.config import ConfigError, DataConfig
from training.data import TrainLoader, iterate_evaluation
from training.data_sets import open_data_sets
from training.distributed import World
from training.sample_order import SampleOrder
from training.shards import ShardReader

BATCH = 12
ORDER = {"seed": 5, "global_batch_size": BATCH, "num_streams": 2, "block_size_samples": 24, "run_size_samples": 4}


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank, world_size, torch.device("cpu"))


def open_loader(config, rank=0, world_size=1, start=0, **changes) -> TrainLoader:
    data_sets = open_data_sets(config)
    order = SampleOrder(sources=tuple(one.source for one in data_sets), **(ORDER | changes))
    return TrainLoader(data_sets, order, world(rank, world_size), 32, 77, config, start)


def batches(uri, count, rank=0, world_size=1, start=0, **options):
    config = uri if isinstance(uri, DataConfig) else DataConfig(uri=uri, **options)
    loader = open_loader(config, rank, world_size, start)
    try:
        return [batch for batch, _ in zip(loader, range(count), strict=False)]
    finally:
        loader.close()


def keys_of(uri):
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    reader = ShardReader(storage, manifest)
    return [sample.key for shard, record in enumerate(manifest.shards) for sample in reader.read(shard, 0, record.num_samples)]


def order_of(uri) -> SampleOrder:
    return SampleOrder(sources=tuple(one.source for one in open_data_sets(DataConfig(uri=uri))), **ORDER)


def test_the_keys_are_those_of_the_global_order(data_set):
    keys, order = keys_of(data_set), order_of(data_set)
    for number, batch in enumerate(batches(data_set, 8)):
        epoch, step = divmod(number, order.steps_per_epoch)
        assert (batch.epoch, batch.step) == (epoch, step)
        assert batch.keys == [keys[index] for index in order.step_samples(epoch, step)]


@pytest.mark.parametrize("world_size", [2, 3, 5, 12])
def test_all_ranks_together_have_the_batch_of_one(data_set, world_size):
    alone = batches(data_set, 6)
    ranks = [batches(data_set, 6, rank, world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        longest = max(part.texts.shape[1] for part in parts)
        assert longest == whole.texts.shape[1]
        padded = [torch.nn.functional.pad(part.texts, (0, longest - part.texts.shape[1])) for part in parts]
        assert torch.equal(torch.cat(padded), whole.texts)


def test_a_resume_goes_on_bit_for_bit(data_set):
    whole = batches(data_set, 9)
    for steps in (1, 4, 7):
        for expected, found in zip(whole[steps:], batches(data_set, 9 - steps, start=steps * BATCH), strict=True):
            assert found.keys == expected.keys
            assert (found.epoch, found.step) == (expected.epoch, expected.step)
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.texts, expected.texts)


def test_the_same_picture_is_cropped_otherwise_in_the_next_epoch(data_set):
    steps = order_of(data_set).steps_per_epoch
    seen = {}
    for batch in batches(data_set, 2 * steps):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    twice = [images for images in seen.values() if len(images) == 2]
    assert len(twice) > 20
    assert sum(not torch.equal(*images) for images in twice) > len(twice) // 2


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
    order = order_of(uri)
    assert order.steps_per_epoch == 50
    reads = reads_of(monkeypatch, uri, 2, start=4 * BATCH)
    seen = {order.locate_sample(index) for step in range(4) for index in order.step_samples(0, step).tolist()}
    due = {order.locate_sample(index) for step in (4, 5) for index in order.step_samples(0, step).tolist()}
    assert due <= set(reads)
    assert not seen & set(reads)
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_read_no_sample_in_common(make_data_set, tmp_path, monkeypatch, world_size):
    uri = make_data_set(str(tmp_path / "set"), (240, 95, 265))
    ranks = [set(reads_of(monkeypatch, uri, 20, rank, world_size)) for rank in range(world_size)]
    assert sum(len(reads) for reads in ranks) == len(set.union(*ranks))


def test_close_ends_the_threads_even_in_mid_epoch(data_set):
    before = threading.active_count()
    loader = open_loader(DataConfig(uri=data_set))
    next(iter(loader))
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert loader.wait_s > 0


def test_a_cut_shard_and_a_missing_one_are_named(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    shard = read_manifest(open_storage(uri)).shards[1]
    tar = tmp_path / "set" / shard.tar_path
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match=rf"{shard.name}\.tar: ends at byte .* the shard was cut"):
        batches(uri, 5)
    tar.unlink()
    with pytest.raises(ManifestError, match=rf"{shard.name}\.tar: the manifest names this shard and it is gone"):
        batches(uri, 5)


def test_a_changed_sidecar_is_named(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    shard = read_manifest(open_storage(uri)).shards[0]
    path = tmp_path / "set" / shard.sidecar_path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ManifestError, match="its sha256 is not the manifest's"):
        batches(uri, 5)


def test_blocks_beyond_the_budget_are_refused(data_set):
    with pytest.raises(ConfigError, match=r"data\.prefetch_bytes=1000 is less than the \d+ bytes"):
        batches(data_set, 1, prefetch_bytes=1000)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_shows_every_sample_once_in_order(data_set, world_size):
    storage = open_storage(data_set)
    manifest = read_manifest(storage)
    keys, shapes, captions = [], [], []
    for rank in range(world_size):
        for batch in iterate_evaluation(storage, manifest, 32, 77, 7, world(rank, world_size), ("shape",)):
            assert batch.images.shape[1:] == (3, 32, 32)
            assert len(batch.images) == len(batch.texts) == len(batch.keys) <= 7
            keys += batch.keys
            captions += batch.captions
            shapes += batch.columns["shape"]
    assert len(keys) == len(set(keys)) == manifest.num_samples
    assert all(shape in caption for shape, caption in zip(shapes, captions, strict=True))


def test_a_column_that_is_not_there_is_answered_with_those_that_are(data_set):
    storage = open_storage(data_set)
    with pytest.raises(ManifestError, match=r"column colour: .*shape; name one of them"):
        list(iterate_evaluation(storage, read_manifest(storage), 32, 77, 7, world(), ("colour",)))


def test_batches_come_from_s3_alike(make_data_set, bucket, tmp_path):
    local, remote = make_data_set(str(tmp_path / "set")), make_data_set(f"{bucket}/set")
    for expected, found in zip(batches(local, 3), batches(remote, 3), strict=True):
        assert found.keys == expected.keys
        assert torch.equal(found.images, expected.images)

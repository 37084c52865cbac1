"""Batches follow the global order at any world size, resume exactly, and read only what they need."""

import threading

import pytest
import torch

from pipeline.manifest import ManifestError, read_manifest
from pipeline.storage import LocalStorage, open_storage
from training.config import ConfigError, DataConfig
from training.data import TrainLoader, iterate_evaluation
from training.distributed import World
from training.sample_order import SampleOrder
from training.shards import ShardReader

BATCH = 12
CONFIG = DataConfig(num_streams=2, block_size_samples=8)


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank, world_size, torch.device("cpu"))


def order_of(manifest, **changes) -> SampleOrder:
    values = {"seed": 5, "num_streams": 2, "block_size_samples": 8, "global_batch_size": BATCH} | changes
    return SampleOrder(shard_counts=tuple(shard.num_samples for shard in manifest.shards), **values)


def batches(uri, count, rank=0, world_size=1, start=0, storage=None, config=CONFIG):
    storage = storage or open_storage(uri)
    manifest = read_manifest(open_storage(uri))
    loader = TrainLoader(storage, manifest, order_of(manifest), world(rank, world_size), 32, 77, config, start)
    try:
        return [batch for batch, _ in zip(loader, range(count), strict=False)]
    finally:
        loader.close()


def test_the_keys_are_those_of_the_global_order(data_set):
    storage = open_storage(data_set)
    manifest = read_manifest(storage)
    keys = [
        sample.key
        for shard, record in enumerate(manifest.shards)
        for sample in ShardReader(storage, manifest).read(shard, 0, record.num_samples)
    ]
    order = order_of(manifest)
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
    steps = order_of(read_manifest(open_storage(data_set))).steps_per_epoch
    seen = {}
    for batch in batches(data_set, 2 * steps):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    twice = [images for images in seen.values() if len(images) == 2]
    assert len(twice) > 20
    assert sum(not torch.equal(*images) for images in twice) > len(twice) // 2


class CountingStorage(LocalStorage):
    """Counts the bytes of range reads."""

    def __init__(self, folder):
        super().__init__(folder)
        self.bytes_read = 0

    def read_range(self, path, start, length):
        self.bytes_read += length
        return super().read_range(path, start, length)


def test_a_resume_reads_nothing_that_it_skips(make_data_set, tmp_path, monkeypatch):
    uri = make_data_set(str(tmp_path / "set"), (40, 25, 55))
    order = order_of(read_manifest(open_storage(uri)))
    assert order.steps_per_epoch == 10
    reads = []
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, *piece: (reads.append(piece), read(self, *piece))[1])
    batches(uri, 2, start=4 * BATCH)

    def pieces(steps):
        slots = [order.step_slots(0, step) for step in steps]
        names = {name for slot in slots for name in zip(slot.stream.tolist(), slot.block.tolist(), strict=True)}
        return {(piece.shard, piece.first, piece.stop) for name in names for piece in order.block_pieces(0, *name)}

    ahead = 2 + CONFIG.prefetch_batches + 1
    assert pieces(range(4, 6)) <= set(reads) <= pieces(range(4, 4 + ahead))
    assert len(reads) == len(set(reads)), "nothing is read twice"
    assert pieces(range(4)) - set(reads), "there was something to skip"


def test_ranks_do_not_read_each_others_blocks(data_set):
    def read_by(rank, world_size):
        storage = CountingStorage(data_set)
        batches(data_set, 5, rank, world_size, storage=storage)
        return storage.bytes_read

    assert read_by(0, 2) + read_by(1, 2) <= 1.3 * read_by(0, 1)


def test_close_ends_the_threads_even_in_mid_epoch(data_set):
    before = threading.active_count()
    manifest = read_manifest(open_storage(data_set))
    loader = TrainLoader(open_storage(data_set), manifest, order_of(manifest), world(), 32, 77, CONFIG, 0)
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
        batches(data_set, 1, config=DataConfig(num_streams=2, block_size_samples=8, prefetch_bytes=1000))


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

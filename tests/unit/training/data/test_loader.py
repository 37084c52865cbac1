"""Batches follow the global order at any world size, resume exactly, and read only what they need."""

import collections
import itertools
import logging
import re
import threading

import pytest
import torch

from pipeline.dataset.manifest import ManifestError, read_manifest
from pipeline.errors import ConfigError, StorageError
from pipeline.storage.address import open_storage
from pipeline.storage.local import LocalStorage
from tests.support.flaky_s3 import flaky_s3
from training.config import DataConfig
from training.data.data_sets import open_data_sets
from training.data.loader import TrainLoader, iterate_evaluation
from training.data.sample_order import SampleOrder
from training.data.shard_reader import ShardReader
from training.distributed import World

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


def damage(uri, shard: int, *samples: int) -> list[str]:
    """Flips a byte in the pictures of samples; returns their keys."""
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    tar = storage.local_path(manifest.shards[shard].tar_path)
    content = bytearray(tar.read_bytes())
    found = []
    for sample in ShardReader(storage, manifest).read(shard, 0, manifest.shards[shard].num_samples):
        if len(found) in samples:
            content[content.index(sample.image) + len(sample.image) // 2] ^= 1
        found.append(sample.key)
    tar.write_bytes(content)
    return [found[number] for number in samples]


def test_a_changed_picture_is_named(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    (key,) = damage(uri, 1, 5)
    with pytest.raises(ManifestError, match=rf"\.tar: sample {key}: the picture has not the sha256 .* data\.on_damage=skip"):
        batches(uri, 10)


@pytest.mark.parametrize("world_size", [2, 3])
def test_damaged_samples_are_replaced_alike_at_any_world_size(make_data_set, tmp_path, world_size):
    uri = make_data_set(str(tmp_path / "set"))
    keys = damage(uri, 0, 2, 3, 11) + damage(uri, 2, 0)
    (tmp_path / "set" / read_manifest(open_storage(uri)).shards[1].tar_path).unlink()
    alone = batches(uri, 10, on_damage="skip")
    assert not {key for batch in alone for key in batch.keys} & set(keys)
    assert all(len(batch.keys) == BATCH for batch in alone)
    ranks = [batches(uri, 10, rank, world_size, on_damage="skip") for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_skipping_is_counted_and_has_a_limit(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    (tmp_path / "set" / read_manifest(open_storage(uri)).shards[1].tar_path).unlink()
    loader = open_loader(DataConfig(uri=uri, on_damage="skip"))
    for _ in zip(range(5), loader, strict=False):
        pass
    loader.close()
    assert 13 <= loader.skipped_samples <= 40
    with pytest.raises(ManifestError, match=r"data\.max_skipped_samples=5: rank 0 found one more damaged sample"):
        batches(uri, 5, on_damage="skip", max_skipped_samples=5)


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


def test_worker_processes_give_the_batches_of_a_thread(data_set):
    for expected, found in zip(batches(data_set, 3), batches(data_set, 3, decode_workers=2), strict=True):
        assert found.keys == expected.keys
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.texts, expected.texts)


def test_a_mixture_is_deterministic_and_resumes_at_any_world_size(make_data_set, tmp_path):
    uris = [make_data_set(str(tmp_path / f"{seed}"), counts, seed) for seed, counts in ((0, (40, 25)), (1, (12,)))]
    keys = [set(keys_of(uri)) for uri in uris]
    config = DataConfig(mixture=[{"uri": uris[0]}, {"uri": uris[1], "weight": 2.5}])
    whole = batches(config, 14)
    first_epoch = [key for batch in whole if batch.epoch == 0 for key in batch.keys]
    assert len(first_epoch) == (65 + 30) // BATCH * BATCH
    rare = [key for key in first_epoch if key in keys[1]]
    assert 20 <= len(rare) <= 30
    assert max(rare.count(key) for key in keys[1]) == 3
    assert all(first_epoch.count(key) <= 1 for key in keys[0])
    for steps in (1, 6, 9):
        ranks = [batches(config, 14 - steps, rank, 2, steps * BATCH) for rank in range(2)]
        for expected, *parts in zip(whole[steps:], *ranks, strict=True):
            assert [key for part in parts for key in part.keys] == expected.keys
            assert torch.equal(torch.cat([part.images for part in parts]), expected.images)


def test_a_sample_that_is_shown_again_within_an_epoch_is_cropped_otherwise(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (40,))
    seen = {}
    for batch in batches(DataConfig(mixture=[{"uri": uri, "weight": 3}]), 10):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    assert {len(images) for images in seen.values()} == {3}
    assert sum(not torch.equal(images[0], images[1]) for images in seen.values()) > 20


def token_texts(uri, count, **options):
    return [tuple(row[row != 0].tolist()) for batch in batches(uri, count, **options) for row in batch.texts]


def test_captions_come_from_other_columns_and_json_keys(data_set):
    from model.tokenizer import token_ids

    shapes = {tuple(row[row != 0].tolist()) for row in token_ids(["disc", "square", "bar", "ring"])}
    assert set(token_texts(data_set, 5, captions=("shape",))) == shapes
    addresses = token_texts(data_set, 5, captions=("json.url",))
    assert len(set(addresses)) > 20
    with pytest.raises(ManifestError, match=r"column colour: .*shape; name one of them"):
        batches(data_set, 1, captions=("colour",))
    with pytest.raises(ManifestError, match=r"has no caption in json\.title"):
        batches(data_set, 1, captions=("json.title",))


def test_of_several_captions_a_seeded_choice_is_made_each_epoch(data_set):
    options = {"captions": ("caption", "shape")}
    first = token_texts(data_set, 10, **options)
    assert first == token_texts(data_set, 10, **options)
    ranks = [token_texts(data_set, 10, rank=rank, world_size=2, **options) for rank in range(2)]
    assert sorted(first) == sorted(ranks[0] + ranks[1])
    short = sum(len(text) == 3 for text in first)
    assert 0.3 < short / len(first) < 0.7


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


def test_a_stall_is_reported_with_rank_shard_and_seconds(data_set, monkeypatch, caplog):
    release = threading.Event()
    read_range = LocalStorage.read_range

    def hanging(self, *place):
        release.wait(10)
        return read_range(self, *place)

    monkeypatch.setattr(LocalStorage, "read_range", hanging)
    threading.Timer(0.7, release.set).start()
    with caplog.at_level(logging.WARNING):
        assert len(batches(data_set, 1, stall_warning_s=0.2)) == 1
    reports = [record.message for record in caplog.records if "waited" in record.message]
    assert len(reports) >= 2
    assert re.search(r"rank 0 has waited \d+ s for data; under way: .*shards/\S+\.tar for \d+ s", reports[0])

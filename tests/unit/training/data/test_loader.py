"""Batches follow the global order at any world size, resume exactly, and replace damaged samples alike."""

import contextlib
import logging
import re
import threading
import time
import weakref

import pytest
import torch

from pipeline.dataset.manifest import ManifestError, read_manifest
from pipeline.storage.address import open_storage
from pipeline.storage.local import LocalStorage
from tests.support.loaders import BATCH, batches, damage, keys_of, open_loader, order_of
from training.config import DataConfig
from training.data import loader
from training.data.data_sets import open_data_sets
from training.data.loader import Batch, TrainLoader
from training.distributed import World


def test_the_keys_are_those_of_the_global_order(data_set):
    keys, order = keys_of(data_set), order_of(DataConfig(uri=data_set))
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


def test_a_resume_continues_bit_for_bit(data_set):
    whole = batches(data_set, 9)
    for steps in (1, 4, 7):
        for expected, found in zip(whole[steps:], batches(data_set, 9 - steps, start=steps * BATCH), strict=True):
            assert found.keys == expected.keys
            assert (found.epoch, found.step) == (expected.epoch, expected.step)
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.texts, expected.texts)


def test_the_same_image_is_cropped_differently_in_the_next_epoch(data_set):
    steps = order_of(DataConfig(uri=data_set)).steps_per_epoch
    seen = {}
    for batch in batches(data_set, 2 * steps):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    twice = [images for images in seen.values() if len(images) == 2]
    assert len(twice) > 20
    assert sum(not torch.equal(*images) for images in twice) > len(twice) // 2


def test_close_ends_the_threads_even_in_mid_epoch(data_set):
    before = threading.active_count()
    loader = open_loader(DataConfig(uri=data_set))
    next(iter(loader))
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert loader.wait_s > 0


def test_a_changed_image_ends_the_run_with_the_key_that_skips_it(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    (key,) = damage(uri, 1, 5)
    with pytest.raises(
        ManifestError, match=rf"\.tar: sample {key}: the image does not match the sha256 .* data\.on_damage=skip"
    ):
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
    with pytest.raises(ManifestError, match=r"data\.max_skipped_samples=5: one more sample on rank 0 is damaged"):
        batches(uri, 5, on_damage="skip", max_skipped_samples=5)


def test_batches_come_from_s3_alike(make_data_set, bucket, tmp_path):
    local, remote = make_data_set(str(tmp_path / "set")), make_data_set(f"{bucket}/set")
    for expected, found in zip(batches(local, 3), batches(remote, 3), strict=True):
        assert found.keys == expected.keys
        assert torch.equal(found.images, expected.images)


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


def test_a_sample_that_is_shown_again_within_an_epoch_is_cropped_differently(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (40,))
    seen = {}
    for batch in batches(DataConfig(mixture=[{"uri": uri, "weight": 3}]), 10):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    assert {len(images) for images in seen.values()} == {3}
    assert sum(not torch.equal(images[0], images[1]) for images in seen.values()) > 20


def token_texts(uri, count, **options):
    return [tuple(row[row != 0].tolist()) for batch in batches(uri, count, **options) for row in batch.texts]


def test_of_several_captions_a_seeded_choice_is_made_each_epoch(data_set):
    options = {"captions": ("caption", "shape")}
    first = token_texts(data_set, 10, **options)
    assert first == token_texts(data_set, 10, **options)
    ranks = [token_texts(data_set, 10, rank=rank, world_size=2, **options) for rank in range(2)]
    assert sorted(first) == sorted(ranks[0] + ranks[1])
    short = sum(len(text) == 3 for text in first)
    assert 0.3 < short / len(first) < 0.7


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_data_gives_up_when_the_run_is_to_stop(data_set, monkeypatch, rank):
    release, asked = threading.Event(), []
    monkeypatch.setattr(LocalStorage, "read_range", lambda *_: release.wait(60))
    monkeypatch.setattr(loader, "GIVES_UP_AFTER_S", 0.3)
    config = DataConfig(uri=data_set)
    stops = iter([False, False, True])

    def is_to_stop():
        asked.append(1)
        return next(stops)

    order, sets = order_of(config), open_data_sets(config)
    waiting = TrainLoader(sets, order, World(rank, 2, torch.device("cpu")), 32, 77, config, 0, is_to_stop)
    began = time.monotonic()
    assert list(waiting) == []
    waiting.close()
    assert time.monotonic() - began < 30
    assert len(asked) == 3
    release.set()


def test_late_data_are_waited_for_when_a_group_is_to_stop(data_set, monkeypatch):
    read_range, release, began = LocalStorage.read_range, threading.Event(), time.monotonic()
    monkeypatch.setattr(LocalStorage, "read_range", lambda *place: release.wait(60) and read_range(*place))
    monkeypatch.setattr(loader, "GIVES_UP_AFTER_S", 2.0)

    def is_to_stop():
        asked = time.monotonic() - began > 2.5
        if asked:
            release.set()
        return asked

    config = DataConfig(uri=data_set, stall_warning_s=0.1)
    order, sets = order_of(config), open_data_sets(config)
    waiting = TrainLoader(sets, order, World(1, 2, torch.device("cpu")), 32, 77, config, 0, is_to_stop)
    assert next(iter(waiting)).keys
    waiting.close()


class _Event:
    """A CUDA event that has happened when it is said to have."""

    happened = False

    def record(self, _stream):
        pass

    def query(self):
        return self.happened


class _Stream:
    def wait_stream(self, _other):
        pass


def test_a_batch_stays_in_memory_until_it_is_copied_to_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: _Stream())
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: _Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    copies, released = loader._Copies(torch.device("cpu")), []

    def batch(number):
        images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        weakref.finalize(images, released.append, number)
        return Batch(images, torch.zeros(2, 1), [], torch.zeros(2), 0, number)

    for number in range(3):
        copies(batch(number))
    assert not released
    monkeypatch.setattr(_Event, "happened", True)
    copies(batch(3))
    assert released == [0, 1, 2]


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

"""Worker processes give the batches of one process, report like it, and do not outlive it."""

import collections
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.dataset.manifest import ManifestError, read_manifest
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import s3_request_counts
from pipeline.storage.address import open_storage
from tests.support.loaders import BATCH, batches, damage, open_loader, order_of
from training.config import DataConfig
from training.data import loader_workers
from training.data.data_sets import open_data_sets
from training.data.loader_workers import WorkerProcessError, _portable

ROOT = Path(__file__).parents[4]


def assert_equal(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert (one.epoch, one.step, one.keys) == (two.epoch, two.step, two.keys)
        assert torch.equal(one.images, two.images)
        assert one.images.stride() == two.images.stride()
        assert torch.equal(one.texts, two.texts)
        assert torch.equal(one.seeds, two.seeds)


def wait_until(happened, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("decoders", "processes"), [(1, 1), (3, 1), (5, 2)])
def test_the_batches_of_several_epochs_are_those_of_one_process(data_set, decoders, processes):
    steps = 2 * order_of(DataConfig(uri=data_set)).steps_per_epoch + 1
    loader = open_loader(DataConfig(uri=data_set, decode_workers=decoders))
    assert len(loader.process_ids()) == processes
    found = [batch for batch, _ in zip(loader, range(steps), strict=False)]
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < loader_workers.CLOSE_S, "they end by themselves"
    expected = batches(data_set, steps)
    assert_equal(found, expected)
    assert [loader.fingerprint(batch) for batch in found] == [loader.fingerprint(batch) for batch in expected]


def test_a_resume_in_mid_epoch_is_exact_for_a_rank_of_several(data_set):
    whole = batches(data_set, 9, rank=1, world_size=2)
    assert_equal(batches(data_set, 5, rank=1, world_size=2, start=4 * BATCH, decode_workers=5), whole[4:])


def test_more_decoders_than_samples_are_not_used(data_set):
    found = batches(data_set, 3, rank=2, world_size=BATCH, decode_workers=7)
    assert_equal(found, batches(data_set, 3, rank=2, world_size=BATCH))


def test_a_mixture_in_which_samples_repeat_is_the_same(make_data_set, tmp_path):
    uris = [make_data_set(str(tmp_path / f"{seed}"), counts, seed) for seed, counts in ((0, (40, 25)), (1, (12,)))]
    mixture = [{"uri": uris[0]}, {"uri": uris[1], "weight": 2.5}]
    found = batches(DataConfig(mixture=mixture, decode_workers=5), 9)
    assert_equal(found, batches(DataConfig(mixture=mixture), 9))


def test_damaged_samples_are_replaced_counted_and_named_alike(make_data_set, tmp_path, caplog):
    uri = make_data_set(str(tmp_path / "set"))
    damage(uri, 0, 2, 3, 11)
    (tmp_path / "set" / read_manifest(open_storage(uri)).shards[1].tar_path).unlink()
    seen = []
    for decoders in (0, 5):
        caplog.clear()
        loader = open_loader(DataConfig(uri=uri, on_damage="skip", decode_workers=decoders))
        found = [batch for batch, _ in zip(loader, range(8), strict=False)]
        loader.close()
        named = {record.getMessage().partition(": ")[2] for record in caplog.records if "skipped" in record.getMessage()}
        seen.append((found, named))
        assert loader.skipped_samples > 5
    assert_equal(seen[1][0], seen[0][0])
    assert len(seen[0][1]) == 2, "a shard that is gone, and a changed image"
    assert seen[1][1] == seen[0][1]
    with pytest.raises(ManifestError, match=r"data\.max_skipped_samples=5: one more sample on rank 0 is damaged"):
        batches(uri, 8, on_damage="skip", max_skipped_samples=5, decode_workers=5)
    with pytest.raises(ManifestError, match=r"\.tar: .*data\.on_damage=skip"):
        batches(uri, 8, decode_workers=5)


def test_s3_and_its_credentials_work_in_the_workers_and_their_requests_are_counted(
    make_data_set, bucket, tmp_path, monkeypatch, caplog
):
    counted = {}
    monkeypatch.setattr(
        s3_request_counts, "_listener", lambda what, number: counted.update({what: counted.get(what, 0) + number})
    )
    uri, options = make_data_set(f"{bucket}/set"), {"cache_dir": str(tmp_path / "cache")}
    expected = batches(uri, 6, **options)
    alone = dict(counted)
    counted.clear()
    assert_equal(batches(uri, 6, decode_workers=2), expected)
    assert counted["requests"] >= alone["requests"] / 2
    for entry in (tmp_path / "cache").rglob("*-*"):
        entry.write_bytes(entry.read_bytes()[:-9] + b"damaged!!")
    with caplog.at_level(logging.WARNING):
        assert_equal(batches(uri, 6, decode_workers=2, **options), expected)
    assert any("is damaged; it is fetched again" in record.getMessage() for record in caplog.records)


def test_storage_that_is_gone_is_the_error_of_the_run(make_data_set, bucket, monkeypatch):
    uri = make_data_set(f"{bucket}/set")
    config = DataConfig(uri=uri)
    order, data_sets = order_of(config), open_data_sets(config)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tests.support.loaders.order_of", lambda *_: order)
    monkeypatch.setattr("tests.support.loaders.open_data_sets", lambda *_: data_sets)
    with pytest.raises(StorageError, match=r"s3://.*: S3 cannot be reached") as raised:
        batches(uri, 2, decode_workers=1)
    assert "raised in a process that reads and decodes" in raised.value.__notes__[0]


def test_a_worker_leaves_signals_to_its_parent_and_its_death_is_an_error(data_set):
    loader = open_loader(DataConfig(uri=data_set, decode_workers=5))
    iterator = iter(loader)
    next(iterator)
    first, second = loader.process_ids()
    os.kill(first, signal.SIGTERM)
    os.kill(second, signal.SIGINT)
    for _ in range(8):
        next(iterator)
    os.kill(second, signal.SIGKILL)
    with pytest.raises(WorkerProcessError, match=r"data\.decode_workers=5: a process .* died; .* lower data\.decode_workers"):
        collections.deque(itertools.islice(iterator, 20))
    loader.close()
    assert not Path(f"/proc/{first}").exists()


def hang(uri):
    """Turns all tars into pipes, which nobody writes to: reads hang in other processes too."""
    storage = open_storage(uri)
    for shard in read_manifest(storage).shards:
        tar = storage.local_path(shard.tar_path)
        tar.unlink()
        os.mkfifo(tar)


def test_a_stall_names_the_reads_of_the_workers_and_close_does_not_wait_for_them(make_data_set, tmp_path, caplog, monkeypatch):
    uri = make_data_set(str(tmp_path / "set"))
    hang(uri)
    monkeypatch.setattr(loader_workers, "CLOSE_S", 0.5)
    loader = open_loader(DataConfig(uri=uri, decode_workers=5, stall_warning_s=0.5))
    ids = loader.process_ids()
    threading.Thread(target=lambda: next(iter(loader), None), daemon=True).start()
    wait_until(lambda: any(".tar for " in record.getMessage() for record in caplog.records), 60)
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 10
    assert not any(Path(f"/proc/{one}").exists() for one in ids)


def test_a_rank_gives_up_its_workers_when_the_run_is_to_stop(make_data_set, tmp_path, monkeypatch):
    from training.data import loader as loaders
    from training.data.loader import TrainLoader
    from training.distributed import World

    uri = make_data_set(str(tmp_path / "set"))
    config = DataConfig(uri=uri, decode_workers=1)
    order, data_sets = order_of(config), open_data_sets(config)
    hang(uri)
    monkeypatch.setattr(loaders, "GIVES_UP_AFTER_S", 0.3)
    waiting = TrainLoader(data_sets, order, World(0, 1, torch.device("cpu")), 32, 77, config, 0, lambda: True)
    (process,) = waiting.process_ids()
    assert list(waiting) == []
    began = time.monotonic()
    waiting.close()
    assert time.monotonic() - began < 5
    assert not Path(f"/proc/{process}").exists()


PARENT = """
import sys, time
from tests.support.loaders import open_loader
from training.config import DataConfig

if __name__ == "__main__":
    loader = open_loader(DataConfig(uri=sys.argv[1], decode_workers=5))
    next(iter(loader))
    print(*loader.process_ids(), flush=True)
    if sys.argv[2] == "waits":
        time.sleep(60)
"""


@pytest.mark.parametrize("end", ["waits", "returns"])
def test_workers_do_not_outlive_a_parent_that_was_killed_or_has_closed_nothing(data_set, tmp_path, end):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), data_set, end]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        if end == "waits":
            parent.kill()
        assert parent.wait(30) == (-signal.SIGKILL if end == "waits" else 0)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


class _UnportableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_sent_says_the_same():
    def raised(error):
        try:
            raise error
        except Exception as caught:
            return _portable(caught)

    assert isinstance(raised(ConfigError("bad")), ConfigError)
    other = raised(_UnportableError(1, 2))
    assert str(other) == "_UnportableError: 1 and 2"
    assert "in raised" in other.__notes__[0]

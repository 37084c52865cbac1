"""Checkpoints that cannot be written: said aloud, tried again, never half there, and in the end the run fails."""

import logging
import threading

import pytest

from pipeline.errors import StorageError
from pipeline.storage.address import open_storage
from tests.support.runs import ALONE, config_of, exact_rows, run_script
from training.checkpoint.store import CheckpointStore
from training.checkpoint.writer import CheckpointError, CheckpointWriter, RunTakenError
from training.record.goodput import Launch
from training.record.run_record import RunRecord
from training.run_plan import plan_run
from training.trainer import Trainer, train


def test_the_training_goes_on_while_a_checkpoint_is_written(data_set, tmp_path, monkeypatch):
    written, reached = threading.Event(), []
    write = CheckpointStore.write

    def slow(self, snapshot, *arguments):
        if snapshot.position.step == 3:
            assert written.wait(timeout=30)
        return write(self, snapshot, *arguments)

    after = Trainer._after_step

    def watching(self):
        after(self)
        if self.position.step == 5:
            reached.append(self._writer.last_folder)
            written.set()

    monkeypatch.setattr(CheckpointStore, "write", slow)
    monkeypatch.setattr(Trainer, "_after_step", watching)
    train(config_of(data_set, tmp_path, "checkpoint.every_steps=3"), ALONE)
    assert reached == [""], "step 5 was done before the checkpoint of step 3 was there"


def test_a_checkpoint_that_fails_is_said_and_costs_only_itself(data_set, tmp_path, monkeypatch, caplog):
    train(config_of(data_set, tmp_path / "undisturbed"), ALONE)
    storage = type(open_storage(str(tmp_path)))
    new_file = storage.new_file

    def refusing(self, path):
        if "step_00000004" in path:
            raise StorageError(f"{path}: S3 refused (503); try again")
        return new_file(self, path)

    monkeypatch.setattr(storage, "new_file", refusing)
    train(config_of(data_set, tmp_path / "run", "checkpoint.every_steps=2", "checkpoint.keep_last=9"), ALONE)
    folders = sorted(path.name for path in (tmp_path / "run" / "debug_cpu" / "checkpoints").iterdir())
    assert folders == [f"step_{step:08d}" for step in (2, 6, 8, 10, 12)]
    assert "the checkpoint of step 4 was not written: " in caplog.text
    assert exact_rows(tmp_path / "run") == exact_rows(tmp_path / "undisturbed")


FULL_DISK = """
import resource, signal, sys
import torch
from jobs.cli.config import load_config
from training.distributed import World
from training.trainer import Trainer, train

after = Trainer._after_step

def fill_the_disk(self):
    after(self)
    if self.position.step == 4:
        self._writer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

Trainer._after_step = fill_the_disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
train(load_config("debug_cpu", sys.argv[1:]), World(0, 1, torch.device("cpu")))
"""


def test_a_full_disk_fails_the_run_after_some_tries_and_keeps_the_checkpoint_before(data_set, tmp_path):
    settings = [f"data.uri={data_set}", f"run.dir={tmp_path}", "checkpoint.every_steps=2"]
    exit_code, errors = run_script(FULL_DISK, *settings)
    assert exit_code == 1
    assert "the checkpoint of step 6 was not written" in errors
    assert "CheckpointError: 3 checkpoints in a row were not written" in errors
    assert "the last one is checkpoints/step_00000004. Make room" in errors
    config = config_of(data_set, tmp_path, "train.max_steps=30")
    assert plan_run(config).start.step == 4
    assert train(config, ALONE).step == 30


def test_object_storage_that_refuses_fails_the_run_with_its_own_words(data_set, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = config_of(data_set, f"{bucket}/runs", "checkpoint.every_steps=2")
    after = Trainer._after_step

    def cut_off(self):
        after(self)
        if self.position.step == 4:
            self._writer.wait()
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            self.plan.run._client = None

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", cut_off)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(CheckpointError, match="S3 cannot be reached"):
            train(config, ALONE)


def test_a_run_that_another_process_has_taken_over_writes_no_more_checkpoints(data_set, tmp_path, monkeypatch):
    config = config_of(data_set, tmp_path, "checkpoint.every_steps=2", "train.max_steps=40")
    after = Trainer._after_step

    def taken(self):
        after(self)
        if self.position.step == 4:
            self._writer.wait()
            RunRecord(plan_run(config), self.launch, self.began, 1, "cpu")

    monkeypatch.setattr(Trainer, "_after_step", taken)
    with pytest.raises(RunTakenError, match=r"run\.name=debug_cpu: another process has taken over this run .*different names"):
        train(config, ALONE)
    assert plan_run(config).start.step == 4


def test_one_failure_at_the_very_end_is_a_failure(caplog):
    caplog.set_level(logging.ERROR)
    writer = CheckpointWriter()

    def refuse():
        raise OSError("no space left on device")

    writer.begin(7, refuse, lambda step: None)
    writer.wait()
    with pytest.raises(CheckpointError, match=r"the last checkpoint was not written \(no space left on device\)"):
        writer.finish()


def test_a_launch_that_has_lost_its_run_does_not_take_it_back_when_it_is_started_anew(data_set, tmp_path):
    config, first = config_of(data_set, tmp_path), Launch()
    for launch in (first, first, Launch()):  # started, started anew, and given again
        RunRecord(plan_run(config), launch, launch.began, 1, "cpu").ready({})
    owner = (tmp_path / "debug_cpu" / "owner.json").read_bytes()
    with pytest.raises(RunTakenError, match="another process has taken over this run"):
        RunRecord(plan_run(config), first, first.began, 1, "cpu")
    assert (tmp_path / "debug_cpu" / "owner.json").read_bytes() == owner


def test_a_damaged_checkpoint_never_pushes_a_good_one_out(data_set, tmp_path):
    train(config_of(data_set, tmp_path, "checkpoint.every_steps=3"), ALONE)
    path = tmp_path / "debug_cpu/checkpoints/step_00000012/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    config = config_of(data_set, tmp_path, "checkpoint.every_steps=1", "checkpoint.keep_last=1", "train.max_steps=11",
                       "run.allow_config_changes=true")  # fmt: skip
    assert plan_run(config).start.step == 9
    train(config, ALONE)
    assert [folder.name for folder in (tmp_path / "debug_cpu" / "checkpoints").iterdir()] == ["step_00000011"]
    assert plan_run(config).start.step == 11

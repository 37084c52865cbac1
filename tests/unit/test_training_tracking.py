"""metrics.jsonl is exact through restarts, and W&B never stops a run."""

import json
import subprocess
import time

import pytest

from jobs.config import load_config
from tests.support.runs import ALONE, BARE, start_script
from tests.support.wandb_file import history, history_of
from training import tracking
from training.config import TrackingConfig
from training.tracking import MetricsFile, Tracker, read_metrics
from training.trainer import train


def test_a_row_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    metrics.append({"step": 1, "loss": 2.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]


def test_a_resume_cuts_the_rows_after_its_checkpoint_and_a_torn_last_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    metrics = MetricsFile(path, resume_step=5)
    metrics.append({"step": 6, "loss": 9.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(path)[-1]["loss"] == 9.0


def test_a_new_run_does_not_keep_the_rows_of_one_that_left_no_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    MetricsFile(path, resume_step=0)
    assert read_metrics(path) == []


def test_an_offline_run_of_wandb_is_written_beside_the_record(tmp_path):
    config = TrackingConfig(wandb_mode="offline")
    with Tracker(config, "name", "name-1234", tmp_path, {"train": {"seed": 1}}, resume_step=0) as tracker:
        tracker.log({"step": 1, "loss": 2.0, "temperature": 0.07})
    assert list(tmp_path.glob("wandb/offline-run-*-name-1234/run-name-1234.wandb"))


def test_a_killed_run_has_every_step_once_in_the_segment_that_its_resume_wrote(data_set, tmp_path):
    settings = [f"data.uri={data_set}", f"run.dir={tmp_path}", "tracking.wandb_mode=offline", "checkpoint.every_steps=5"]
    run = start_script(BARE, "debug_cpu", *settings, "train.max_steps=40", stdout=subprocess.DEVNULL)
    while not any(row["step"] >= 12 for row in read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")):
        time.sleep(0.005)
        assert run.poll() is None
    run.kill()
    run.wait()
    train(load_config("debug_cpu", [*settings, "train.max_steps=40"]), ALONE)
    first, second = sorted((tmp_path / "debug_cpu").glob("wandb/offline-run-*/*.wandb"))  # their folders begin with the time
    assert first.name == second.name, "one run to W&B"
    steps = [row["_step"] for row in history(first)]
    assert steps == sorted(set(steps))
    assert len(steps) < 40
    written = history_of(second, 40)
    assert [row["_step"] for row in written] == list(range(1, 41))
    rows = {row["_step"]: row for row in written}
    for row in read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl"):
        assert rows[row["step"]]["loss"] == row["loss"]
        assert rows[row["step"]]["temperature"] == row["temperature"]


def test_a_run_that_is_open_already_is_left_to_its_owner(tmp_path):
    import wandb

    theirs = wandb.init(mode="offline", dir=tmp_path / "theirs", settings=wandb.Settings(silent=True, console="off"))
    with Tracker(TrackingConfig(wandb_mode="offline"), "name", "name-1234", tmp_path, {}, resume_step=0):
        pass
    assert wandb.run is theirs
    theirs.finish()
    assert list(tmp_path.glob("wandb/offline-run-*-name-1234/run-name-1234.wandb"))


@pytest.mark.parametrize("moment", ["init", "log"])
def test_a_broken_wandb_does_not_stop_the_record(tmp_path, monkeypatch, moment):
    import wandb

    def broken(*arguments, **options):
        raise RuntimeError("no W&B today")

    if moment == "init":
        monkeypatch.setattr(wandb, "init", broken)
    tracker = Tracker(TrackingConfig(wandb_mode="offline"), "name", "id", tmp_path, {}, resume_step=0)
    if moment == "log":
        monkeypatch.setattr(tracker._wandb, "log", broken)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.log({"step": 2, "loss": 1.0})
    tracker.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_disabled_starts_no_wandb(tmp_path, monkeypatch):
    assert tracking._start_wandb(TrackingConfig(wandb_mode="disabled"), "name", "id", tmp_path, {}) is None

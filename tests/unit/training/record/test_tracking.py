"""metrics.jsonl is exact through restarts, and W&B never stops a run."""

import json
import subprocess
import time
from types import SimpleNamespace

import pytest

from jobs.cli.config import load_config
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.runs import ALONE, BARE, start_script
from tests.support.wandb_file import artifacts_of, history, history_of
from training.config import TrackingConfig
from training.evaluation.watched_pairs import pairs_id
from training.record.tracking import MetricsFile, Tracker, read_metrics
from training.trainer import train

PAIRS = {
    "uri": "data",
    "version": 1,
    "keys": ["k"],
    "captions": ["a red disc"],
    "thumbnails": [""],
    "shown": [0],
    "queries": [0],
}
LOOK = {"step": 1, "pairs": pairs_id(PAIRS), "similarity": [[0.5]], "found": [[0]], "rank": [0]}


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
    settings += [f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=4"]
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
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        assert numbers.items() <= rows[row["step"]].items(), "steps and evaluations, every number"
    media = [row for row in written if "probe/similarity.path" in row]
    assert [row["_step"] for row in media] == list(range(4, 41, 4)), "those before the kill too"
    for row in media:
        pictures = [row["probe/similarity.path"], *row["probe/text_to_image.filenames"]]
        assert all((second.parent / "files" / picture).is_file() for picture in pictures)
        assert len(pictures) == 1 + len(row["probe/text_to_image.captions"]) == 9
    (used,) = artifacts_of(second)
    manifest = read_manifest(open_storage(data_set))
    assert (used["type"], used["used"], used["aliases"]) == ("dataset", True, ["latest", "version-1"])
    assert used["metadata"] == {"uri": data_set, "version": 1, "identity": manifest.identity}


def test_a_run_that_is_open_already_is_left_to_its_owner(tmp_path):
    import wandb

    theirs = wandb.init(mode="offline", dir=tmp_path / "theirs", settings=wandb.Settings(silent=True, console="off"))
    with Tracker(TrackingConfig(wandb_mode="offline"), "name", "name-1234", tmp_path, {}, resume_step=0):
        pass
    assert wandb.run is theirs
    theirs.finish()
    assert list(tmp_path.glob("wandb/offline-run-*-name-1234/run-name-1234.wandb"))


@pytest.mark.parametrize("moment", ["init", "Artifact.add_reference", "Image", "log"])
def test_a_broken_wandb_does_not_stop_the_record(data_set, tmp_path, monkeypatch, moment):

    def broken(*arguments, **options):
        raise RuntimeError("no W&B today")

    if moment != "log":
        monkeypatch.setattr(f"wandb.{moment}", broken)
    data_sets = [{"uri": data_set, "version": 1, "identity": "a" * 64}]
    tracker = Tracker(TrackingConfig(wandb_mode="offline"), "name", f"id-{moment}", tmp_path, {}, 0, data_sets)
    if moment == "log":
        monkeypatch.setattr(tracker._wandb, "log", broken)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.log_watched_pairs(PAIRS, LOOK)
    tracker.log({"step": 2, "loss": 1.0})
    tracker.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert read_metrics(tmp_path / "probe.jsonl") == [LOOK]
    if moment in ("Artifact.add_reference", "Image"):
        (path,) = tmp_path.glob(f"wandb/offline-run-*-id-{moment}/run-id-{moment}.wandb")
        assert [row["_step"] for row in history_of(path, 2)] == [1, 2], "what is not broken goes on"


def test_a_server_that_cannot_be_reached_does_not_stop_the_record(data_set, tmp_path, monkeypatch, caplog):
    address = SimpleNamespace(settings=SimpleNamespace(base_url="http://127.0.0.1:9"))  # nobody listens there
    monkeypatch.setattr("wandb.setup", lambda: address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("training.record.wandb_run.SERVER_ANSWERS_WITHIN_S", 2.0)
    data_sets = [{"uri": data_set, "version": 1, "identity": "a" * 64}]
    with Tracker(TrackingConfig(wandb_mode="online"), "name", "name-1234", tmp_path, {}, 0, data_sets) as tracker:
        tracker.log({"step": 1, "loss": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert "W&B is logged offline: http://127.0.0.1:9 does not answer" in caplog.text
    assert tracker.sync_command == f"wandb sync {folder}"
    assert "0" * 40 not in caplog.text


def test_disabled_starts_no_wandb(tmp_path):
    with Tracker(TrackingConfig(wandb_mode="disabled"), "name", "name-1234", tmp_path, {}, resume_step=0) as tracker:
        tracker.log({"step": 1, "loss": 2.0})
        tracker.log_watched_pairs(PAIRS, LOOK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "probe.jsonl"]

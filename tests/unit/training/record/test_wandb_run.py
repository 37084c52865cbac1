"""A W&B run is offline where it cannot be online, and says how to upload it."""

import shlex
from pathlib import Path

import pytest

from training.config import TrackingConfig
from training.record import wandb_run
from training.record.wandb_run import open_run, sync_command


def test_a_run_that_the_server_refuses_is_offline_and_names_the_command_that_uploads_it(tmp_path, monkeypatch, caplog):
    import wandb

    real, ended = wandb.init, []

    def without_a_key(**options):
        if options["mode"] == "online":
            raise wandb.errors.UsageError("No API key\nconfigured")
        return real(**options)

    monkeypatch.setattr(wandb_run, "why_server_is_away", lambda: "")
    monkeypatch.setattr(wandb, "init", without_a_key)
    monkeypatch.setattr(wandb, "teardown", lambda: ended.append(True))
    folder = tmp_path / "a folder"
    folder.mkdir()
    run = open_run(TrackingConfig(wandb_mode="online"), "name", "name-1234", str(folder), {}, None, holds_all=True)
    assert ended, "a process that failed to open the run would keep its id"
    assert "W&B is logged offline: No API key configured" in caplog.text
    *words, place = shlex.split(sync_command(run))
    assert words == ["wandb", "sync"]
    assert Path(place).parent == folder / "wandb"
    assert list(Path(place).glob("*.wandb"))
    run.finish()
    assert sync_command(run).endswith(shlex.quote(place)), "also at the end"


def test_a_disabled_run_needs_no_upload(tmp_path):
    run = open_run(TrackingConfig(wandb_mode="disabled"), "name", "name-1234", str(tmp_path), {}, None)
    assert sync_command(run) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("stated", "used"), [("new/folder", True), ("file/folder", False)])
def test_wandb_dir_is_made_and_where_it_cannot_be_the_runs_folder_is_used(tmp_path, monkeypatch, caplog, stated, used):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / stated))
    assert wandb_run._folder("theirs") == (str(tmp_path / stated) if used else "theirs")
    assert (tmp_path / stated).is_dir() == used
    assert ("cannot be used" in caplog.text) != used

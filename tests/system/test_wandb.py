"""W&B, online: a stub of its server has the run's record, each step once, whatever happened on the way."""

import os
import shutil
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest

from tests.support.runs import BARE, ROOT
from tests.support.tracked_run import ID
from tests.support.wandb_server import WandbServer, wandb_server
from training.record.tracking import read_metrics

TEN_MINUTES_S = 600


def start(server: WandbServer, *command: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
    environment |= {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5"}  # otherwise 15 s
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment, **pipes)


def start_tracking(server: WandbServer, *arguments: object) -> subprocess.Popen[str]:
    return start(server, "-m", "tests.support.tracked_run", *arguments)


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return output


def sync(server: WandbServer, *arguments: object) -> None:
    wandb = Path(sys.executable).with_name("wandb")
    output = finish(start(server, wandb, "sync", *arguments))
    assert "ERROR" not in output, output


def as_logged(folder: Path) -> dict[int, dict[str, object]]:
    """The record by step, as W&B shows it: rows of one step are one."""
    rows = [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in read_metrics(folder)]
    merged = {step: {} for step in (row["step"] for row in rows)}
    for step, group in groupby(rows, key=lambda row: row["step"]):
        for row in group:
            merged[step] |= {key: value for key, value in row.items() if key != "step"}
    return merged


def as_arrived(server: WandbServer, run_id: str = ID) -> dict[int, dict[str, object]]:
    rows = server.runs[run_id].rows()
    steps = [row["_step"] for row in rows]
    assert len(steps) == len(set(steps)), f"a step came twice: {steps}"
    return {
        row["_step"]: {key: value for key, value in row.items() if key[0] != "_" and not isinstance(value, dict)}
        for row in rows
    }


def kept_away(path: str) -> int:
    return 503


def test_an_online_run_has_each_step_once_through_a_kill_and_an_outage(tmp_path):
    (tmp_path / "go").touch()
    with wandb_server() as server:
        killed = start_tracking(server, tmp_path, "online", 0, 40)
        server.await_step(ID, 9)
        killed.kill()
        killed.communicate()
        resumed = start_tracking(server, tmp_path, "online", 5, 40)
        assert "tracking\n" in iter(resumed.stdout.readline, "")
        server.fault = kept_away
        (tmp_path / "go").unlink()
        time.sleep(3)
        server.fault = lambda path: None
        finish(resumed)
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        assert list(server.runs) == [ID]
        assert server.runs[ID].starts == 2
        (data_set,) = server.runs[ID].uses
        assert '"identity":"0123"' in server.artifacts[data_set]["metadata"]


def test_a_start_without_the_server_is_logged_offline_and_synced_later_as_it_is_told(tmp_path):
    with wandb_server() as server:
        finish(start_tracking(server, tmp_path, "offline", 0, 12))
        server.fault = kept_away
        output = finish(start_tracking(server, tmp_path, "online", 10, 25))
        assert f"{server.address} answers with 503" in output
        remedy = output.partition("once it answers: wandb sync ")[2].split()[0]
        server.fault = lambda path: None
        sync(server, *sorted((tmp_path / "wandb").glob("offline-run-*")))
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        server.runs.clear()
        shutil.rmtree(tmp_path / "synced", ignore_errors=True)
        sync(server, "--no-skip-synced", remedy)
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["500", "429", "cut", "slow"])
def test_a_run_ends_in_time_while_the_server_fails_and_what_it_says_to_do_works(tmp_path, fault):
    faults = {"500": lambda path: 500, "429": lambda path: 429, "cut": lambda path: 0, "slow": lambda path: time.sleep(20)}
    (tmp_path / "go").touch()
    with wandb_server() as server:
        process = start_tracking(server, tmp_path, "online", 0, 40)
        server.await_step(ID, 9)
        server.fault = faults[fault]
        (tmp_path / "go").unlink()
        began = time.monotonic()
        output = finish(process)
        assert time.monotonic() - began < 60
        server.fault = lambda path: None
        if "W&B did not finish" in output:
            sync(server, "--no-skip-online", output.partition("wandb sync --no-skip-online ")[2].split()[0])
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")


@pytest.mark.soak
def test_a_training_has_its_record_in_wandb_through_a_kill_and_an_outage_of_ten_minutes(data_set, tmp_path):
    overrides = ("train.max_steps=400", "checkpoint.every_steps=5", "tracking.wandb_mode=online")
    command = ("-c", BARE, "debug_cpu", f"data.uri={data_set}", f"run.dir={tmp_path}", *overrides)
    record = tmp_path / "debug_cpu" / "metrics.jsonl"
    with wandb_server() as server:
        killed = start(server, *command)
        while not record.exists() or len(read_metrics(record)) < 20:
            time.sleep(0.1)
        killed.kill()
        killed.communicate()
        resumed = start(server, *command)
        while len(read_metrics(record)) < 60:
            time.sleep(0.1)
        server.fault = kept_away
        time.sleep(TEN_MINUTES_S)
        server.fault = lambda path: None
        finish(resumed, 600)
        (run_id,) = server.runs
        arrived, logged = as_arrived(server, run_id), as_logged(record)
        assert arrived == logged
        assert server.runs[run_id].starts == 2

"""W&B, online: a stub of its server has the run's record, each step once, whatever happened on the way."""

import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from tests.support.runs import BARE, EXACT, ROOT
from tests.support.tracked_run import ID
from tests.support.wandb_server import WandbServer, wandb_server
from training.record.tracking import read_metrics

TEN_MINUTES_S = 600


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_stays():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        process.stdout.close()


def start(server: WandbServer, *command: object, **more: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
    environment |= {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5"} | more  # otherwise 15 s
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment, **pipes))
    return STARTED[-1]


def start_tracking(server: WandbServer, *arguments: object, **more: str) -> subprocess.Popen[str]:
    return start(server, "-m", "tests.support.tracked_run", *arguments, **more)


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return output


def sync_as_told(server: WandbServer, output: str) -> None:
    """Run the command that a run has printed, with W&B's own program."""
    program, *arguments = shlex.split(output.partition("sync: ")[2].splitlines()[0])
    assert program == "wandb"
    said = finish(start(server, Path(sys.executable).with_name("wandb"), *arguments))
    assert "ERROR" not in said, said
    assert "Skipped" not in said, said


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
        assert "sync: \n" in finish(resumed), "it has arrived"
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        assert list(server.runs) == [ID]
        assert server.runs[ID].starts == 2
        assert server.runs[ID].summary()["time/train"] == 1.5
        (data_set,) = server.runs[ID].uses
        assert server.artifacts[data_set]["artifactTypeName"] == "dataset"
        assert '"identity":"0123"' in server.artifacts[data_set]["metadata"]


def test_an_offline_run_and_one_without_its_server_are_uploaded_as_they_say(tmp_path):
    with wandb_server() as server:
        sync_as_told(server, finish(start_tracking(server, tmp_path, "offline", 0, 12)))
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        server.fault = kept_away
        output = finish(start_tracking(server, tmp_path, "online", 10, 25, 2))
        assert f"W&B is logged offline: {server.address} answers with 503" in output
        server.fault = lambda path: None
        sync_as_told(server, output)
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        assert list(server.runs) == [ID]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("variables", "fault", "says"),
    [
        ({"WANDB_API_KEY": "", "NETRC": "/dev/null"}, lambda path: None, "No API key configured"),
        ({"WANDB_API_KEY": "short"}, lambda path: None, "API key must have 40+ characters"),
        ({}, lambda path: 401, "error 401"),
        ({"WANDB_ENTITY": "not-ours"}, lambda path: 404, "error 404"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, lambda path: None, "127.0.0.1:9 does not answer"),
        ({"WANDB_BASE_URL": "no address"}, lambda path: None, "W&B did not start"),
    ],
)
def test_a_run_that_w_and_b_refuses_is_offline_and_is_uploaded_as_it_says(tmp_path, variables, fault, says):
    with wandb_server() as server:
        server.fault = fault
        output = finish(start_tracking(server, tmp_path, "online", 0, 12, 3, **variables))
        assert says in output
        assert "Traceback" not in output
        server.fault = lambda path: None
        if "W&B did not start" not in output:
            sync_as_told(server, output)
            assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")


FAULTS = {
    "500": lambda path: 500,
    "429": lambda path: 429,
    "cut": lambda path: 0,
    "slow": lambda path: time.sleep(20),
    "refused": lambda path: 403 if path.endswith("/file_stream") else None,
    "forgotten": lambda path: 404,
}


@pytest.mark.soak
def test_variables_of_w_and_b_count_and_those_that_would_mix_runs_do_not(tmp_path):
    of_a_shell = {"WANDB_PROJECT": "clip", "WANDB_RUN_GROUP": "ablation", "WANDB_TAGS": "a,, b", "WANDB_NAME": "warm"}
    of_a_shell |= {"WANDB_NOTES": "longer warm-up", "WANDB_JOB_TYPE": "pretrain", "WANDB_ENTITY": "", "WANDB_MODE": "disabled"}
    mixing = {"WANDB_RUN_ID": "of-another", "WANDB_RESUME": "must", "WANDB_SWEEP_ID": "s", "WANDB_FORK_FROM": "r?_step=3"}
    variables = of_a_shell | mixing | {"WANDB_DIR": str(tmp_path / "else" / "where")}
    with wandb_server() as server:
        output = finish(start_tracking(server, tmp_path, "online", 0, 12, **variables))
        for name in mixing:
            assert f"{name}={mixing[name]}: is not used: " in output
        assert "sync: \n" in output
        assert list(server.runs) == [ID]
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        settings = server.runs[ID].settings
        assert (settings["project"], settings["groupName"], settings["displayName"]) == ("clip", "ablation", "warm")
        assert (settings["tags"], settings["notes"], settings["jobType"]) == (["a", "b"], "longer warm-up", "pretrain")
        assert list((tmp_path / "else" / "where" / "wandb").glob("run-*"))
        assert not (tmp_path / "wandb").exists()


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_ends_in_time_while_the_server_fails_and_what_it_says_to_do_works(tmp_path, fault):
    (tmp_path / "go").touch()
    with wandb_server() as server:
        process = start_tracking(server, tmp_path, "online", 0, 40)
        server.await_step(ID, 9)
        server.fault = FAULTS[fault]
        (tmp_path / "go").unlink()
        began = time.monotonic()
        output = finish(process)
        assert time.monotonic() - began < 60
        server.fault = lambda path: None
        if "sync: \n" not in output:
            sync_as_told(server, output)
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")
        assert server.runs[ID].summary()["time/train"] == 1.5


@pytest.mark.soak
def test_a_run_whose_wandb_process_is_killed_is_uploaded_as_it_says(tmp_path):
    (tmp_path / "go").touch()
    with wandb_server() as server:
        process = start_tracking(server, tmp_path, "online", 0, 40)
        server.await_step(ID, 9)
        (core,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(core), signal.SIGKILL)
        (tmp_path / "go").unlink()
        output = finish(process)
        assert "W&B is off until the end" in output
        assert "Traceback" not in output
        sync_as_told(server, output)
        assert as_arrived(server) == as_logged(tmp_path / "metrics.jsonl")


def start_training(server: WandbServer, data_set: str, folder: Path) -> subprocess.Popen[str]:
    overrides = (
        "train.max_steps=1000000",
        "train.num_epochs=1000000",
        "checkpoint.every_steps=50",
        "tracking.wandb_mode=online",
    )
    return start(server, "-c", BARE, "debug_cpu", f"data.uri={data_set}", f"run.dir={folder}", *overrides)


def await_rows(record: Path, count: int) -> list[dict[str, object]]:
    while not record.exists() or len(rows := read_metrics(record)) < count:
        time.sleep(0.2)
    return rows


def step_times_s(rows: list[dict[str, object]]) -> list[float]:
    times = [row["time"] for row in rows if "loss" in row]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.soak
def test_steps_do_not_wait_for_a_server_that_answers_after_a_minute(data_set, tmp_path):
    record = tmp_path / "debug_cpu" / "metrics.jsonl"
    with wandb_server() as server:
        process = start_training(server, data_set, tmp_path)
        before = len(await_rows(record, 200))
        server.fault = lambda path: time.sleep(60)
        rows = await_rows(record, before + 600)
        usual, slow = step_times_s(rows[:before]), step_times_s(rows[before:])
        process.terminate()
        began = time.monotonic()
        finish(process)
        ended_s = time.monotonic() - began
        figures = f"median {statistics.median(usual):.4f} s and {statistics.median(slow):.4f} s, longest {max(slow):.2f} s"
        print(f"steps: {figures}; the end took {ended_s:.0f} s")
        assert statistics.median(slow) < 1.5 * statistics.median(usual)
        assert max(slow) < max(3.0, 2 * max(usual))
        assert ended_s < 90


@pytest.mark.soak
def test_a_training_has_its_record_in_wandb_through_a_kill_and_an_outage_of_ten_minutes(data_set, tmp_path):
    record = tmp_path / "debug_cpu" / "metrics.jsonl"
    with wandb_server() as server:
        killed = start_training(server, data_set, tmp_path)
        await_rows(record, 120)
        (run_id,) = server.runs
        server.await_step(run_id, 20)  # W&B sends with a delay
        killed.kill()
        killed.communicate()
        sent_before = max(row["_step"] for row in server.runs[run_id].rows())
        resumed = start_training(server, data_set, tmp_path)
        await_rows(record, 200)
        server.fault = kept_away
        time.sleep(TEN_MINUTES_S)
        server.fault = lambda path: None
        server.await_step(run_id, await_rows(record, 1)[-1]["step"])
        resumed.terminate()
        finish(resumed)
        arrived, logged = as_arrived(server, run_id), as_logged(record)
        assert list(arrived) == list(logged)
        for step, row in logged.items():
            assert arrived[step].keys() == row.keys()
            if step > sent_before:
                assert arrived[step] == row
            else:  # the times of a step that was taken again are those of the first time
                assert {key: arrived[step][key] for key in row if key in EXACT} == {
                    key: row[key] for key in row if key in EXACT
                }
        assert server.runs[run_id].starts == 2

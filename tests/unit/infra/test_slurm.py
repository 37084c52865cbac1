"""infra/slurm/train.sbatch, run by bash with stand-ins for SLURM's and Ray's commands: what it starts, and how it stops."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "infra" / "slurm" / "train.sbatch"
STAND_INS = {
    # `srun` runs the command behind its own options, `ray symmetric-run` the one behind `--`, as those do on the first node.
    # A lost node gives srun a code of its own, whatever the driver's is.
    "srun": 'echo "srun $*" >> "$LOG"\n'
    'while [ "${1#--}" != "$1" ]; do file=${1#--output=}; [ "$file" = "$1" ] || exec > "$file" 2>&1; shift; done\n'
    'echo "noise of Ray"; "$@"; code=$?; sleep "${RAY_ENDS_S:-0}"\n'
    'exit "${SRUN_CODE:-$code}"',
    "ray": 'echo "ray $*" >> "$LOG"; [ "$1" = symmetric-run ] || exit 0; [ -z "$NO_RAY" ] || exit "$NO_RAY"\n'
    '[ -z "$SLOW_RAY" ] || { echo slow >> "$LOG"; exec sleep 5; }\n'
    'env | grep "^RAY_" | sort >> "$LOG"; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "python": 'echo "python $*" >> "$LOG"; trap "exit 143" TERM; echo "a line of the run"; echo ready >> "$LOG"\n'
    'for _ in $(seq "${STEPS:-1}"); do sleep 0.05; done; exit "${CODE:-0}"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"',
    "hostname": "echo 10.0.0.7 10.1.0.7",
}


@pytest.fixture
def launch(tmp_path):
    processes = []

    def start(*arguments: str, **variables: str) -> tuple[subprocess.Popen[str], Path]:
        folder, log = tmp_path / "bin", tmp_path / "log"
        folder.mkdir()
        log.touch()
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "48", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "17"}
        path = f"{folder}:{os.environ['PATH']}"
        environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": path, "LOG": str(log), **slurm, **variables}
        command = ["bash", str(SCRIPT), *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        return process, log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines()


def wait_for(log: Path, line: str) -> None:
    deadline = time.monotonic() + 30
    while line not in lines(log):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_it_starts_one_ray_over_all_nodes_and_hands_the_arguments_to_the_job(launch):
    process, log = launch("--config", "vit_b_32", "data.uri=/a b/pairs")
    assert process.wait(30) == 0, process.stdout.read()
    (start,) = [line for line in lines(log) if line.startswith("ray symmetric-run")]
    assert "--address 10.0.0.7:6379 --min-nodes 2 --num-cpus=48 --num-gpus=4 -- bash" in start
    assert "python jobs/train.py cluster.num_workers=[1,8] --config vit_b_32 data.uri=/a b/pairs" in lines(log)
    assert {"RAY_AUTH_MODE=token", "RAY_health_check_period_ms=1000", "RAY_gcs_rpc_server_reconnect_timeout_s=10"} <= set(
        lines(log)
    )
    assert lines(log)[0] == "ray get-auth-token --generate"
    assert not any(line.startswith("scontrol") for line in lines(log))


def test_the_time_limits_signal_reaches_the_driver_as_sigterm_and_the_job_is_queued_again(launch):
    process, log = launch(STEPS="600")
    wait_for(log, "ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 143, process.stdout.read()
    assert lines(log)[-1] == "scontrol requeue 17"


def test_a_signal_that_comes_when_the_run_ends_by_itself_keeps_its_exit_code(launch):
    process, log = launch(STEPS="10", CODE="0")
    wait_for(log, "ready")
    (driver,) = [path for path in log.parent.glob("tmp.*") if path.read_text().strip()]
    driver.write_text("999999999\n")  # the driver is gone when the signal is handed on
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 0, process.stdout.read()
    assert not any(line.startswith("scontrol") for line in lines(log))


def test_a_sigterm_to_the_script_reaches_the_driver_and_ends_the_run_for_good(launch):
    process, log = launch(STEPS="600")
    wait_for(log, "ready")
    process.send_signal(signal.SIGTERM)  # scancel --batch --signal=TERM
    assert process.wait(30) == 143, process.stdout.read()
    assert not any(line.startswith("scontrol") for line in lines(log))


@pytest.mark.parametrize("told", [True, False], ids=["told to end", "ended by Ray's own end"])
def test_the_time_limits_signal_while_ray_ends_does_not_queue_a_run_again_that_was_to_end(launch, told):
    process, log = launch(STEPS="600", RAY_ENDS_S="3")
    wait_for(log, "ready")
    (driver,) = [path for path in log.parent.glob("tmp.*") if path.read_text().strip()]
    if told:
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(int(driver.read_text()), signal.SIGTERM)
    deadline = time.monotonic() + 30
    while not (code := driver.with_name(f"{driver.name}.code")).exists() or not code.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert "queued again" not in said
    assert not any(line.startswith("scontrol") for line in lines(log))


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_a_signal_while_ray_starts_ends_the_step_as_nothing_is_to_be_saved(launch, number, requeued):
    process, log = launch(SLOW_RAY="1")
    wait_for(log, "slow")
    process.send_signal(number)
    assert process.wait(30) == 143, process.stdout.read()
    assert ("scontrol requeue 17" in lines(log)) == requeued


def test_the_log_holds_the_run_and_another_file_what_ray_says(launch, tmp_path):
    process, _ = launch()
    said, _ = process.communicate(timeout=30)
    assert said == "a line of the run\n"
    assert (tmp_path / "rayclip-17-ray.log").read_text() == "noise of Ray\n"


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({}, "4"),
        ({"SLURM_GPUS_PER_NODE": "2"}, "2"),
        ({"SLURM_GPUS_PER_NODE": "a100:2"}, "2"),
        ({"SLURM_GPUS_PER_NODE": "0"}, "0"),
    ],
)
def test_ray_and_the_step_get_the_gpus_that_were_asked_for_or_all_of_the_nodes(launch, asked, gpus):
    process, log = launch(**asked)
    assert process.wait(30) == 0, process.stdout.read()
    (step,) = [line for line in lines(log) if line.startswith("srun")]
    assert f"--num-gpus={gpus} " in step
    assert (f"--gpus-per-node={gpus} " in step) == (gpus != "0")
    workers = 2 * max(int(gpus), 1)
    assert any(f"python jobs/train.py cluster.num_workers=[1,{workers}]" in line for line in lines(log))


def test_a_slurm_without_gpus_is_asked_for_none(launch):
    process, log = launch(SLURM_GPUS_ON_NODE="")
    assert process.wait(30) == 0, process.stdout.read()
    (step,) = [line for line in lines(log) if line.startswith("srun")]
    assert "--num-gpus=0 " in step
    assert "--gpus" not in step
    assert not re.search(r"^#SBATCH .*(gpu|gres)", SCRIPT.read_text(), re.MULTILINE)


def test_a_sigterm_that_reaches_the_driver_without_the_script_ends_the_run_for_good(launch):
    process, log = launch(STEPS="600")
    wait_for(log, "ready")
    (driver,) = [path for path in log.parent.glob("tmp.*") if path.read_text().strip()]
    os.kill(int(driver.read_text()), signal.SIGTERM)  # `scancel JOB` signals the steps, not this shell
    assert process.wait(30) == 143, process.stdout.read()
    assert not any(line.startswith("scontrol") for line in lines(log))


@pytest.mark.parametrize("code", ["1", "2", "143"])  # 143: SLURM ended the step, as `scancel` does
def test_a_run_that_failed_or_was_ended_keeps_its_exit_code_and_is_not_queued_again(launch, code):
    process, log = launch(CODE=code)
    assert process.wait(30) == int(code)
    assert not any(line.startswith("scontrol") for line in lines(log))


@pytest.mark.parametrize("code", ["0", "2"])
def test_the_exit_code_is_the_drivers_also_where_a_node_was_lost_on_the_way(launch, code):
    process, log = launch(CODE=code, SRUN_CODE="137")
    assert process.wait(30) == int(code)
    assert not list(log.parent.glob("tmp.*")), "nothing is left behind"


@pytest.mark.parametrize(("step", "code"), [("3", 3), ("0", 1)])  # 0: `ray symmetric-run`, where Ray does not start
def test_a_step_that_ends_before_its_driver_begins_has_failed_whatever_its_own_code(launch, step, code):
    process, _ = launch(NO_RAY=step)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == f"the run did not start (exit code {code}); rayclip-17-ray.log says why\n"


def test_the_line_for_cron_queues_an_ingestion_that_runs_where_the_code_is(tmp_path):
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if re.match(r"[\d*]+ .* sbatch --job-name", line)]
    *times, command = line.split(maxsplit=5)
    assert len([part for part in times if re.fullmatch(r"[\d*]+", part)]) == 5
    project, log = tmp_path / "rayclip", tmp_path / "log"
    stand_ins = {
        # SLURM runs what is wrapped by sh, in the folder where sbatch was typed
        tmp_path / "bin" / "sbatch": 'while [ "$1" != --wrap ]; do shift; done; exec sh -c "$2"',
        project / ".venv" / "bin" / "python": f'echo "$PWD $*" > {log}',
    }
    for path, body in stand_ins.items():
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"  # cron's own is short
    subprocess.run(["sh", "-c", command.replace("/YOUR_FOLDER", str(tmp_path))], env={"PATH": path}, check=True)
    arguments = f"ingest.input={tmp_path}/tables ingest.output={tmp_path}/pairs"
    assert log.read_text() == f"{project} jobs/ingest.py {arguments}\n"

"""infra/slurm/train.sbatch and the lines of docs/cluster.md on a real SLURM of two nodes (tests/support/slurm.py)."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.slurm import FIRST, NODES, SECOND, SlurmCluster, missing, wait_until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
STAND_IN_FOR_RAY = """#!/bin/bash
[ "$1" = symmetric-run ] || exit 0
echo "$(hostname) was told ${*:2:9} and has ${SLURM_GPUS_ON_NODE:-0} GPUs"
[ ! -e wait ] || sleep 600
"""
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository's root as a folder of its own, so that logs go elsewhere."""
    folder = tmp_path / "rayclip"
    folder.mkdir()
    for name in ("jobs", "infra"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    return folder


@pytest.fixture
def train(slurm: SlurmCluster, clone: Path, data_set: str) -> Iterator[Callable[..., str]]:
    """Submit train.sbatch as documented, on a CPU: (options of sbatch, steps) -> the job's number."""
    numbers = []

    def submit(options: str, steps: int) -> str:
        settings = f"--config debug_cpu run.name=run run.dir={clone}/runs data.uri={data_set} train.max_steps={steps}"
        numbers.append(slurm.submit(f"sbatch {options} infra/slurm/train.sbatch {settings}", clone, **ENVIRONMENT))
        return numbers[-1]

    yield submit
    for number in numbers:
        slurm.on(FIRST, f"scancel {number}")
        slurm.wait_for_end(number, 120)
        print((clone / f"rayclip-{number}.log").read_text())


def rows(clone: Path, name: str = "metrics") -> list[dict]:
    path = clone / "runs" / "run" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def wait_for_step(clone: Path, step: int, seconds: float = 300) -> None:
    wait_until(lambda: any(row["step"] >= step for row in rows(clone)), seconds, lambda: f"step {step}")


def seconds_of_ray_after_the_driver(clone: Path, job: dict[str, str]) -> float:
    """Return for how long the allocation was held after the last line of the run's log."""
    end = datetime.fromisoformat(job["EndTime"]).timestamp()
    return end - (clone / f"rayclip-{job['JobId']}.log").stat().st_mtime


def test_two_nodes_train_and_let_the_allocation_go_soon_after_the_last_step(slurm, clone, train):
    number = train("--nodes=2", 40)
    job = slurm.wait_for_end(number, 900)
    log = (clone / f"rayclip-{number}.log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert [row["step"] for row in rows(clone)] == list(range(1, 41))
    assert [start["world_size"] for start in rows(clone, "starts")] == [2]
    assert "trained 40 steps" in "".join(log.splitlines(keepends=True)[-8:])
    assert not re.search("Failed to connect to GCS|autoscaler failed|raylet|srun: error", log), log
    assert "On worker node" in (clone / f"rayclip-{number}-ray.log").read_text()
    held = seconds_of_ray_after_the_driver(clone, job)
    print(f"held for {held:.0f} s after the run")
    assert held < 45
    assert not any(re.search(r"raylet|gcs_server", slurm.processes(name)) for name in NODES)


def test_a_run_is_queued_again_before_its_time_limit_resumes_at_the_next_step_and_saves_when_it_is_ended(slurm, clone, train):
    number = train("--nodes=2 --time=4 --signal=B:USR1@45", 100_000)
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", 400, lambda: str(slurm.job(number)))
    slurm.on(FIRST, f"scontrol update jobid={number} timelimit=60")  # a busy machine may need minutes to start again
    saved = rows(clone)[-1]["step"]
    wait_for_step(clone, saved + 5)
    (line,) = re.findall(r"^(scancel --batch --signal=TERM) JOB$", PAGE, re.MULTILINE)
    slurm.on(FIRST, f"{line} {number}")
    job = slurm.wait_for_end(number, 200)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "143:0", "1")
    steps = [row["step"] for row in rows(clone)]
    assert steps == list(range(1, len(steps) + 1))
    log = (clone / f"rayclip-{number}.log").read_text()
    assert f"stopped at step {saved}; " in log
    assert f"stopped at step {steps[-1]}; " in log
    assert f"resumes from checkpoints/step_{saved:08d}" in log


def test_a_killed_node_costs_its_worker_and_not_the_run(slurm, clone, train):
    number = train("--nodes=2", 400)
    wait_for_step(clone, 15)
    slurm.kill_node(SECOND)
    killed = time.time()
    wait_until(
        lambda: [start["world_size"] for start in rows(clone, "starts")] == [2, 1], 200, lambda: str(rows(clone, "starts"))
    )
    print(f"a group of one after {time.time() - killed:.0f} s")
    job = slurm.wait_for_end(number, 600)
    slurm.bring_back(SECOND)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0")
    assert [row["step"] for row in rows(clone)] == list(range(1, 401))


def test_the_line_of_cron_started_twice_at_once_ingests_each_row_once(slurm, clone, tmp_path, draw_shape):
    pictures, tables = tmp_path / "pictures", tmp_path / "tables"
    for folder in (pictures, tables):
        folder.mkdir()
    for number in range(4):
        (pictures / f"{number}.png").write_bytes(draw_shape("red", "disc", number))
    address = NODES[FIRST]
    urls = [f"http://{address}:8000/{number}.png,a red disc" for number in range(4)]
    (tables / "t.csv").write_text("\n".join(["url,caption", *urls, ""]))
    server = f"python -m http.server 8000 --bind {address} --directory {pictures} > {tmp_path}/web.log 2>&1 & echo $!"
    web = slurm.on(FIRST, server, **ENVIRONMENT)
    (line,) = re.findall(r"^[\d*]+ [\d*]+ \S+ \S+ \S+ (cd /YOUR_FOLDER/rayclip && sbatch .*)'$", PAGE, re.MULTILINE)
    line = f"{line.replace('/YOUR_FOLDER', str(tmp_path))} ingest.fetch.allow_addresses=[{address}/32]'"
    try:
        numbers = [slurm.submit(line, tmp_path, **ENVIRONMENT) for _ in range(2)]
        wait_until(lambda: slurm.job(numbers[0])["JobState"] == "RUNNING", 60)
        waiting = slurm.job(numbers[1])
        assert (waiting["JobState"], waiting["Reason"]) == ("PENDING", "Dependency")
        ends = [slurm.wait_for_end(number, 400) for number in numbers]
    finally:
        slurm.on(FIRST, f"kill {web}")
    logs = [(clone / f"slurm-{number}.out").read_text() for number in numbers]
    assert [end["JobState"] for end in ends] == ["COMPLETED"] * 2, logs
    assert ends[1]["StartTime"] >= ends[0]["EndTime"]
    manifest = read_manifest(open_storage(f"{tmp_path}/pairs"))
    assert (manifest.version, manifest.num_samples) == (1, 4)
    assert "nothing to do" in logs[1]


# --- with a stand-in for `ray`, whose start is not the point


@pytest.fixture
def without_ray(clone: Path) -> Path:
    (clone / "bin").mkdir()
    (clone / "bin" / "ray").write_text(STAND_IN_FOR_RAY)
    (clone / "bin" / "ray").chmod(0o755)
    return clone


def submit_without_ray(slurm: SlurmCluster, clone: Path, options: str) -> str:
    variables = ENVIRONMENT | {"PATH": f"{clone}/bin:{ENVIRONMENT['PATH']}"}
    return slurm.submit(f"sbatch --nodes=2 {options} infra/slurm/train.sbatch --config debug_cpu", clone, **variables)


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_signal_while_ray_starts_ends_the_job_or_queues_it_again(slurm, without_ray, signal):
    (without_ray / "wait").touch()
    number = submit_without_ray(slurm, without_ray, "")
    log = without_ray / f"rayclip-{number}-ray.log"
    wait_until(lambda: log.exists() and log.read_text().count("was told") == 2, 60)
    (without_ray / "wait").unlink()
    slurm.on(FIRST, f"scancel --batch --signal={signal} {number}")
    if signal == "USR1":
        wait_until(lambda: slurm.job(number)["Restarts"] == "1", 60, lambda: str(slurm.job(number)))
    job = slurm.wait_for_end(number, 120)
    assert job["ExitCode"] == ("143:0" if signal == "TERM" else "1:0")  # 1: the stand-in starts no run then either
    assert job["Restarts"] == ("0" if signal == "TERM" else "1")


def test_a_slurm_without_gpus_takes_the_file_and_refuses_only_the_option_that_asks_for_gpus(slurm, without_ray):
    number = submit_without_ray(slurm, without_ray, "")
    slurm.wait_for_end(number, 60)
    assert told(without_ray, number) == dict.fromkeys(NODES, ("0", "0"))
    with pytest.raises(AssertionError, match="Invalid generic resource"):
        submit_without_ray(slurm, without_ray, "--gpus-per-node=4")


@pytest.mark.parametrize(
    ("options", "gpus"), [("", "2"), ("--gpus-per-node=2", "2"), ("--gpus-per-node=1", "1"), ("--gpus=4", "2")]
)
def test_ray_is_told_the_gpus_that_the_step_has(slurm_with_gpus, without_ray, options, gpus):
    number = submit_without_ray(slurm_with_gpus, without_ray, options)
    slurm_with_gpus.wait_for_end(number, 60)
    assert told(without_ray, number) == dict.fromkeys(NODES, (gpus, gpus))


def test_a_run_that_asks_for_no_gpus_gets_none(slurm_with_gpus, without_ray):
    number = submit_without_ray(slurm_with_gpus, without_ray, "--gpus-per-node=0")
    slurm_with_gpus.wait_for_end(number, 60)
    assert told(without_ray, number) == dict.fromkeys(NODES, ("0", "0"))


@pytest.fixture(scope="module")
def slurm_with_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), gpus=2) as cluster:
        yield cluster


def told(clone: Path, number: str) -> dict[str, tuple[str, str]]:
    """Return per node the GPUs that Ray is told of, and those that its step has."""
    text = (clone / f"rayclip-{number}-ray.log").read_text()
    return {
        name: (ray, step)
        for name, ray, step in re.findall(r"^(\S+) was told .*--num-gpus=(\d+) .* has (\d+) GPUs$", text, re.M)
    }

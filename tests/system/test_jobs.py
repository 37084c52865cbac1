"""Jobs as users run them: submitted to a running cluster, and the demo with everything in object storage."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest import read_manifest
from pipeline.storage import open_storage
from training.tracking import read_metrics

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port(low: int) -> int:
    """A free port outside the range that Ray's workers take."""
    for port in range(low, low + 200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


def environment(**more: str) -> dict[str, str]:
    """The caller's environment with the interpreter's folder first on the PATH, as the README tells users to have it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "RAY_AUTH_MODE": "disabled"} | more


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, data_set, make_data_set):
    """`ray start --head` in a project folder; yields (dashboard address, the folder)."""
    project = tmp_path_factory.mktemp("project")
    (project / "jobs").symlink_to(ROOT / "jobs")
    make_data_set(str(project / "data" / "demo" / "train"), (150, 120))
    dashboard = free_port(28265)
    # The path of a socket in it must be short.
    temporary = Path(f"/tmp/ray-test-{os.getpid()}")
    command = [RAY, "start", "--head", "--block", f"--port={free_port(26379)}", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={free_port(29265)}"]  # the default one may belong to another Ray
    command += ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={temporary}", "--disable-usage-stats"]
    log = (project / "ray.log").open("w")
    settings = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}  # by default a head drains for 30 s
    settings |= {"RAY_JOB_STOP_WAIT_TIME_S": "120"}  # as the README says
    head = subprocess.Popen(command, cwd=project, env=environment(**settings), stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    for _ in range(120):
        if subprocess.run([RAY, "job", "list", "--address", address], env=environment(), capture_output=True).returncode == 0:
            break
        time.sleep(0.5)
    else:
        raise RuntimeError((project / "ray.log").read_text())
    yield address, project
    head.terminate()
    try:
        head.wait(timeout=40)
    except subprocess.TimeoutExpired:
        head.kill()
    shutil.rmtree(temporary, ignore_errors=True)


def submit(cluster, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return job(cluster, "submit", *options, "--", "python", *arguments)


def job(cluster, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ray job COMMAND`, typed in the project's folder."""
    address, project = cluster
    full = [RAY, "job", command, "--address", address, *arguments]
    return subprocess.run(full, cwd=project, env=environment(), capture_output=True, text=True, check=False)


def test_ingest_and_train_are_submitted_with_a_working_directory(cluster, web, tmp_path, draw_shape):
    rows = []
    for number in range(40):
        url = web.put(f"/{number}.png", draw_shape("red", "disc", number))
        rows.append({"url": url, "caption": f"a red disc, number {number}"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    ingest = submit(
        cluster,
        "jobs/ingest.py",
        f"ingest.input={tmp_path / 't.parquet'}",
        f"ingest.output={tmp_path / 'data'}",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
        options=("--working-dir", str(ROOT)),
    )
    assert ingest.returncode == 0, ingest.stdout + ingest.stderr
    assert "40 samples" in ingest.stdout
    assert read_manifest(open_storage(str(tmp_path / "data"))).num_samples == 40

    training = submit(
        cluster,
        "jobs/train.py",
        "--config",
        "debug_cpu",
        f"data.uri={tmp_path / 'data'}",
        f"run.dir={tmp_path / 'runs'}",
        "train.max_steps=8",
        "optimizer.warmup_steps=2",
        options=("--working-dir", str(ROOT)),
    )
    assert training.returncode == 0, training.stdout + training.stderr
    assert "trained 8 steps, 256 samples" in training.stdout
    assert json.loads((tmp_path / "runs" / "debug_cpu" / "result.json").read_text())["step"] == 8
    assert "finished: 8 steps" in (tmp_path / "runs" / "debug_cpu" / "report.html").read_text()


def test_a_job_that_is_stopped_saves_the_step_that_it_is_at_and_goes_on_when_submitted_again(cluster, data_set, tmp_path):
    settings = ("--config", "debug_cpu", f"data.uri={data_set}", f"run.dir={tmp_path}", "checkpoint.every_steps=null")
    name = ("--submission-id", "to-be-stopped")
    started = submit(cluster, "jobs/train.py", *settings, "train.max_steps=4000", options=(*name, "--no-wait"))
    assert started.returncode == 0, started.stdout + started.stderr
    folder = tmp_path / "debug_cpu"
    deadline = time.time() + 90
    while not any(row["step"] >= 5 for row in read_metrics(folder / "metrics.jsonl")):
        assert time.time() < deadline, job(cluster, "logs", name[1]).stdout
        time.sleep(0.1)
    stopped = job(cluster, "stop", name[1])
    assert "was stopped" in stopped.stdout + stopped.stderr, stopped.stdout + stopped.stderr
    last = read_metrics(folder / "metrics.jsonl")[-1]["step"]
    said = f"stopped at step {last:,}; the same command goes on from checkpoints/step_{last:08d}"
    assert said in job(cluster, "logs", name[1]).stdout
    more = (f"train.max_steps={last + 2}", "run.allow_config_changes=true")
    again = submit(cluster, "jobs/train.py", *settings, *more)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumes from checkpoints/step_{last:08d}" in again.stdout


def test_the_default_recipe_trains_in_the_projects_folder_without_any_option(cluster):
    _, project = cluster
    # Three steps instead of 300; all else is what `ray job submit -- python jobs/train.py` does.
    result = submit(cluster, "jobs/train.py", "train.max_steps=3", "optimizer.warmup_steps=1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (project / "runs" / "default" / "result.json").exists()


def test_bad_input_fails_the_submission_with_its_message(cluster, tmp_path):
    result = submit(cluster, "jobs/train.py", "train.max_stebs=3")
    assert result.returncode != 0
    assert "did you mean train.max_steps?" in result.stdout + result.stderr


def run_demo(bucket: str, folder: Path, s3_environment: dict[str, str], *options: str) -> str:
    """The demo with shards and checkpoints in a bucket; what it prints. The S3 keys are found nowhere."""
    command = [
        sys.executable,
        str(ROOT / "jobs" / "demo.py"),
        "--data-dir",
        f"{bucket}/demo",
        f"run.dir={bucket}/runs",
        *options,
    ]
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(RAY_ADDRESS="local", **s3_environment),
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "held-out pairs among" in result.stdout
    assert "http_404" in result.stdout
    assert "OpenMoji" in result.stdout
    pictures = list((folder / "runs" / "demo-pictures").glob("*.png"))
    assert {picture.name for picture in pictures} == {"curves.png", "gallery.png"}
    secret = s3_environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in output
    storage = open_storage(bucket)
    for item in storage.list(""):
        assert secret.encode() not in storage.read(item.path), item.path
    return result.stdout


def test_a_shrunken_demo_has_its_shards_and_checkpoints_in_object_storage(bucket, s3_environment, tmp_path):
    shrunken = ("--concepts", "12", "train.max_steps=6", "optimizer.warmup_steps=2", "train.global_batch_size=32")
    run_demo(bucket, tmp_path, s3_environment, *shrunken)
    storage = open_storage(bucket)
    assert read_manifest(open_storage(f"{bucket}/demo/train")).num_samples > 50
    assert storage.exists("runs/demo/checkpoints/step_00000006/checkpoint.json")
    assert len(storage.read("runs/demo/metrics.jsonl").splitlines()) >= 6
    assert b"finished: 6 steps" in storage.read("runs/demo/report.html")


@pytest.mark.soak
def test_the_full_demo_in_object_storage_learns_to_compose(bucket, s3_environment, tmp_path):
    print(run_demo(bucket, tmp_path, s3_environment))
    figures = json.loads((tmp_path / "runs" / "demo-pictures" / "demo.json").read_text())["figures"]
    retrieval = next(row for name, row in figures.items() if name.startswith("R@1, 283 held-out pairs"))
    tone = next(row for name, row in figures.items() if name.startswith("tone"))
    for way in ("image_to_text", "text_to_image"):
        assert retrieval[way] > 0.25 > retrieval["tone_blind"]
        assert tone[way] > 0.6 > tone["chance"]
    assert read_manifest(open_storage(f"{bucket}/demo/train")).num_samples == 3000

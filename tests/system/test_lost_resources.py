"""What a job needs is taken from it while it works: memory, shared memory, Ray's folder, S3. One message of ours is last."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from model.clip import build_clip
from model.weights import save_weights
from tests.conftest import S3_ENVIRONMENT, free_port, web_server
from tests.support.chaos import write_table
from tests.support.last_words import check_last_words
from tests.support.small_disk import NAMESPACE, has_namespaces
from tests.support.stopped_jobs import Ending, run_job

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="this user may not make mount namespaces")


@dataclass
class Server:
    """An S3 server that can be taken away."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def leave(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    one = Server(
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"},
    )
    for name, value in one.environment.items():
        monkeypatch.setenv(name, value)
    import boto3

    for _ in range(120):
        with contextlib.suppress(Exception):
            boto3.client("s3").create_bucket(Bucket="bucket")
            break
        time.sleep(0.5)
    yield one
    one.leave()


def run_until(arguments: list[str], moment: Callable[[str], bool], act: Callable[[], None], environment, log: Path) -> Ending:
    """Runs a job, and acts once at a moment of its output."""
    acted: list[float] = []

    def watch(output: str, seconds: float) -> bool:
        if not acted and moment(output):
            acted.append(seconds)
            act()
        return False

    ending = run_job(arguments, 0, watch, environment, log, timeout_s=400.0)
    assert acted, ending.output
    return ending


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    save_weights(build_clip("debug-vit"), tmp_path / "debug.safetensors")
    return tmp_path / "debug.safetensors"


def test_s3_that_leaves_while_a_run_trains(server, data_set, tmp_path, environment):
    endless = ("train.max_steps=1000000", "train.num_epochs=1000000", "checkpoint.every_steps=5")
    arguments = ["jobs/train.py", "--config", "debug_cpu", f"data.uri={data_set}", "run.dir=s3://bucket/runs", *endless]
    leaving = (lambda output: "checkpoint at step 5" in output, server.leave)
    ending = run_until(arguments, *leaving, environment | server.environment, tmp_path / "log")
    check_last_words(ending, "train", 1, "checkpoints in a row were not written (s3://bucket/runs/debug_cpu")


def test_s3_that_leaves_while_rows_are_ingested(server, tmp_path, environment):
    with web_server() as web:
        table = write_table(tmp_path / "t.parquet", web, 60, slow_s=0.5)
        settings = (f"ingest.input={table}", "ingest.output=s3://bucket/pairs", "ingest.partition_size_rows=30")
        arguments = ["jobs/ingest.py", *settings, "ingest.fetch.allow_addresses=[127.0.0.1/32]"]
        leaving = (lambda _: len(web.requests) > 5, server.leave)
        ending = run_until(arguments, *leaving, environment | server.environment, tmp_path / "log")
    check_last_words(ending, "ingest", 1, "S3 cannot be reached")


def test_s3_that_leaves_while_a_model_is_evaluated(server, make_data_set, weights, tmp_path, environment):
    data = make_data_set("s3://bucket/set", (60, 60))
    workers = ("cluster.num_workers=2", "cluster.cpus_per_worker=1")
    settings = (f"evaluation.retrieval_uri={data}", "model.name=debug-vit", *workers)
    words = ("--weights", str(weights), "--activation", "quick_gelu")
    arguments = ["jobs/evaluate.py", "--config", "debug_cpu", *words, *settings]
    leaving = (lambda output: "Requesting resources" in output, server.leave)
    ending = run_until(arguments, *leaving, environment | server.environment, tmp_path / "log")
    check_last_words(ending, "evaluate", 1, "S3 cannot be reached")


@pytest.mark.parametrize("job", ["train", "index"])
def test_a_node_without_memory_ends_a_job_with_its_message(job, data_set, tmp_path, environment):
    """Ray's memory monitor ends each worker: of training in its loop, of indexing before it has begun a tar."""
    monitor = {"RAY_memory_usage_threshold": "0.02", "RAY_memory_monitor_refresh_ms": "200"}
    if job == "train":
        arguments = ["jobs/train.py", "--config", "debug_cpu", f"data.uri={data_set}", f"run.dir={tmp_path / 'runs'}"]
    else:
        arguments = ["jobs/index.py", f"index.input={data_set}/shards", f"index.output={tmp_path / 'out'}"]
    ending = run_job(arguments, environment=environment | monitor, log=tmp_path / "log", timeout_s=500.0)
    check_last_words(
        ending, job, 1, "ran out of memory" if job == "train" else "times a worker died while nothing was finished"
    )


# ------------------------------------------------------------------------------------------------------------------ full disks

FILLS = """mount -t tmpfs -o "size=$1" tmpfs "$2"
(until grep -q "$3" "$4"; do sleep 0.2; done; dd if=/dev/zero "of=$2/fill" bs=64k) 2> /dev/null &
shift 4; exec "$@"
"""
EXEC = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


def run_while_it_fills(size: str, folder: str, moment: str, arguments: list[str], environment, log: Path) -> Ending:
    """Runs a job for which `folder` is a disk of its own, which is filled once the output has a text."""
    filling = [*NAMESPACE, "bash", "-c", FILLS, "bash", size, folder, moment, str(log)]
    return run_job(["-c", EXEC, *filling, sys.executable, *arguments], environment=environment, log=log, timeout_s=400.0)


@needs_namespaces
def test_a_folder_of_rays_that_fills_costs_a_run_nothing_and_one_that_is_full_is_named(data_set, tmp_path, environment):
    settings = (f"data.uri={data_set}", f"run.dir={tmp_path / 'runs'}", "train.max_steps=400", "train.num_epochs=400")
    arguments = ["jobs/train.py", "--config", "debug_cpu", *settings]
    folder, log = environment["RAY_TMPDIR"], tmp_path / "log"
    ending = run_while_it_fills("64m", folder, "step 1/", arguments, environment, log)
    assert ending.code == 0, f"a group that trains needs no files of Ray's: {ending.output}"
    assert ending.output.splitlines()[-1].startswith("next: ")
    ending = run_while_it_fills("64k", folder, "", arguments, environment, log)
    check_last_words(ending, "train", 1, f"{folder} on this machine: full")


@needs_namespaces
def test_shared_memory_that_fills_costs_an_embedding_nothing(make_data_set, weights, tmp_path, environment):
    data = make_data_set(str(tmp_path / "set"), (60, 60, 60))
    settings = (f"embed.data={data}", f"embed.output={tmp_path / 'features'}", "model.name=debug-vit", "embed.num_workers=1")
    arguments = ["jobs/embed.py", "--weights", str(weights), *settings]
    small = {"RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.008"}
    ending = run_while_it_fills("260m", "/dev/shm", "", arguments, environment | small, tmp_path / "log")
    assert ending.code == 0, f"Ray takes its own folder for what finds no room: {ending.output}"

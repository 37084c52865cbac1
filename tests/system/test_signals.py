"""SIGINT and SIGTERM end every job at every moment, with nothing left running; the same command then gives the same result."""

import contextlib
import itertools
import json
import random
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from model.clip import build_clip
from model.weights import save_weights
from pipeline.dataset.manifest import read_manifest, read_sidecar
from pipeline.storage.address import open_storage
from tests.conftest import S3_ENVIRONMENT, web_server
from tests.support.chaos import write_table
from tests.support.cluster import MiniCluster
from tests.support.moments import BOTH, SEED, Moments, check_ended, told
from tests.support.runs import exact_rows
from tests.support.stopped_jobs import run_job
from training.data.shard_reader import ShardReader


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs; a test adds the node."""
    for attempt in range(3):  # Ray's head gives up after 30 s, which a machine with other work may need
        try:
            one = MiniCluster({})
            break
        except RuntimeError:
            assert attempt < 2
    yield one
    one.close()


@pytest.fixture
def on_cluster(cluster):
    """The environment of a job that joins the cluster, which has a node by then."""
    if len(cluster.node_ids()) == 1:
        cluster.add_node(cpus=2)
    return cluster.environment | {"RAY_ADDRESS": cluster.address}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(build_clip("debug-vit"), tmp_path / "debug.safetensors")
    return tmp_path / "debug.safetensors"


def train_arguments(data: str, folder: Path, *more: str) -> list[str]:
    settings = (f"data.uri={data}", f"run.dir={folder}", "checkpoint.every_steps=null")
    return ["jobs/train.py", "--config", "debug_cpu", *settings, "model.image_size_px=128", *more]


# ------------------------------------------------------------------------------------------------------------ in `make test`


def test_a_run_that_waits_for_workers_says_what_for_and_ends_on_ctrl_c(data_set, tmp_path, cluster):
    code = "import runpy, sys; from training.launch import driver_wait as wait; wait.SAYS_EVERY_S = 1.0; sys.argv[:1] = []; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["-c", code, *train_arguments(data_set, tmp_path / "runs")]
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    ending = run_job(
        arguments, signal.SIGINT, lambda output, _: "waiting for workers" in output, environment, tmp_path / "log", 120.0
    )
    check_ended(ending, signal.SIGINT)
    (line, *_) = [line for line in ending.output.splitlines() if line.startswith("waiting for workers")]
    assert line.endswith(
        "s: cluster.num_workers=1, each with 1 CPUs; the cluster has 0 CPUs (0 free) and 0 GPUs (0 free) on 1 nodes"
    )
    assert ending.output.splitlines()[-1] == "stopped; committed work is kept, and the same command resumes"
    assert "Traceback" not in ending.output


@pytest.fixture
def silence():
    """(port of a server that accepts connections and never answers, event: someone has connected)."""
    heard, held = threading.Event(), []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])
                heard.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard


@pytest.mark.parametrize(("silent", "number"), [("storage", signal.SIGINT), ("head", signal.SIGTERM)])
def test_a_job_that_waits_for_a_storage_or_a_head_that_does_not_answer_ends(
    data_set, tmp_path, environment, silence, silent, number
):
    port, heard = silence
    if silent == "storage":
        arguments = ["jobs/evaluate.py", "run.dir=s3://bucket/runs", "run.name=one"]
        environment |= S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    else:
        arguments = train_arguments(data_set, tmp_path / "runs")
        environment |= {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    ending = run_job(arguments, number, lambda *_: heard.is_set(), environment, tmp_path / "log", 120.0)
    check_ended(ending, number)
    assert ending.output.splitlines()[-1] == "stopped; committed work is kept, and the same command resumes"
    assert "Traceback" not in ending.output


# ------------------------------------------------------------------------------------------------------------ in `make soak`


def samples_of(uri: Path) -> list[object]:
    """Row number, key, status and the image's bytes of each row, whatever partition it is in."""
    storage = open_storage(str(uri))
    manifest, rows = read_manifest(storage), []
    reader = ShardReader(storage, manifest, ("caption",))
    for number, shard in enumerate(manifest.shards):
        images = {sample.key: sample.image for sample in reader.read(number, 0, shard.num_samples)}
        for row in read_sidecar(storage, shard, ["n", "key", "caption", "status", "sha256"]).to_pylist():
            rows.append((row["n"], row["caption"], row["status"], row["sha256"], images.get(row["key"])))
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.soak
def test_training_stopped_before_while_and_after_it_waits_for_workers(data_set, tmp_path, cluster):
    assert len(cluster.node_ids()) == 1, "the first test with the cluster"
    rng, environment = random.Random(f"{SEED}/waits"), cluster.environment | {"RAY_ADDRESS": cluster.address}
    log = tmp_path / "log"

    def arguments(folder: str) -> list[str]:
        return train_arguments(data_set, tmp_path / folder, "train.max_steps=300")

    for moment, number in itertools.product(("before", "while", "after"), BOTH):
        extra_s, since = rng.uniform(0.0, 5.0), []

        def when(
            output: str, seconds: float, moment: str = moment, extra_s: float = extra_s, since: list[float] = since
        ) -> bool:
            if moment == "before":
                return seconds > extra_s or "Requesting resources" in output
            if not since and re.search("Requesting resources" if moment == "while" else r"step [\d,]+/300 ", output):
                since.append(seconds)
            return bool(since) and seconds - since[0] > extra_s

        if moment == "after" and len(cluster.node_ids()) == 1:
            cluster.add_node(cpus=2)
        ending = run_job(arguments("stopped"), number, when, environment, log)
        print(f"train, {moment} waiting: {told(ending, number)}", flush=True)
        check_ended(ending, number, cluster)
    for folder in ("stopped", "undisturbed"):
        ending = run_job(arguments(folder), environment=environment, log=log)
        assert ending.code == 0, ending.output
    assert exact_rows(tmp_path / "stopped") == exact_rows(tmp_path / "undisturbed")


def ingestion(table: str) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        settings = (f"ingest.input={table}", f"ingest.output={folder}", "ingest.partition_size_rows=10", "ingest.num_workers=2")
        fetch = ("ingest.fetch.allow_addresses=[127.0.0.1/32]", "ingest.fetch.concurrency=2", "ingest.commit_every_s=3")
        return ["jobs/ingest.py", *settings, *fetch]

    return command


def training(data: str) -> Callable[[Path], list[str]]:
    return lambda folder: train_arguments(data, folder, "train.max_steps=60")


def embedding(data: str, weights: Path) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        settings = (f"embed.data={data}", f"embed.output={folder}", "model.name=debug-vit", "embed.num_workers=1")
        return ["jobs/embed.py", "--weights", str(weights), *settings, "embed.batch_size=8"]

    return command


def evaluation(data: str, weights: Path, workers: int) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        settings = (f"evaluation.retrieval_uri={data}", "model.name=debug-vit", f"cluster.num_workers={workers}")
        words = ("--weights", str(weights), "--activation", "quick_gelu", "--json", str(folder / "figures.json"))
        return ["jobs/evaluate.py", "--config", "debug_cpu", *words, *settings]

    return command


def features_of(folder: Path) -> object:
    names = json.loads((folder / "embedding.json").read_text())["files"]
    return [pq.read_table(folder / name).to_pylist() for name in names]


def figures_of(folder: Path) -> object:
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.soak
def test_evaluation_stopped_at_two_moments_in_one_process(make_data_set, tmp_path, environment, weights):
    data = make_data_set(str(tmp_path / "set"), (60, 60, 60), seed=3)
    Moments("evaluate here", evaluation(data, weights, 1), figures_of, tmp_path, environment).run(2)


@pytest.mark.soak
def test_evaluation_stopped_at_three_moments_on_two_workers(make_data_set, tmp_path, on_cluster, cluster, weights):
    data = make_data_set(str(tmp_path / "set"), (60, 60, 60), seed=3)
    Moments("evaluate", evaluation(data, weights, 2), figures_of, tmp_path, on_cluster, cluster).run(3)


@pytest.mark.soak
def test_embedding_stopped_at_four_moments(make_data_set, tmp_path, on_cluster, cluster, weights):
    data = make_data_set(str(tmp_path / "set"), (40, 40, 40, 40), seed=4)
    Moments("embed", embedding(data, weights), features_of, tmp_path, on_cluster, cluster).run(4)


@pytest.mark.soak
def test_training_stopped_at_five_moments_on_a_cluster(data_set, tmp_path, on_cluster, cluster):
    Moments("train", training(data_set), exact_rows, tmp_path, on_cluster, cluster).run(5)


@pytest.mark.soak
def test_ingestion_stopped_at_six_moments_on_a_cluster(tmp_path, on_cluster, cluster):
    with web_server() as web:
        table = write_table(tmp_path / "t.parquet", web, 160, slow_s=0.5)
        Moments("ingest", ingestion(table), samples_of, tmp_path, on_cluster, cluster).run(6)


@pytest.mark.soak
def test_ingestion_stopped_at_two_moments_on_a_ray_of_its_own(tmp_path, environment):
    with web_server() as web:
        table = write_table(tmp_path / "t.parquet", web, 160, slow_s=0.5)
        Moments("ingest alone", ingestion(table), samples_of, tmp_path, environment).run(2)


@pytest.mark.soak
def test_training_stopped_at_two_moments_on_a_ray_of_its_own(data_set, tmp_path, environment):
    Moments("train alone", training(data_set), exact_rows, tmp_path, environment).run(2)

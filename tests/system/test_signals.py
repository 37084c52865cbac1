"""SIGINT and SIGTERM end every job at every moment, with nothing left running; the same command then gives the same result."""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from model.clip import build_clip
from model.weights import save_weights
from pipeline.dataset.manifest import read_manifest, read_sidecar
from pipeline.storage.address import open_storage
from tests.conftest import web_server
from tests.support.chaos import write_table
from tests.support.cluster import MiniCluster
from tests.support.runs import exact_rows
from tests.support.stopped_jobs import Ending, run_job
from training.data.shard_reader import ShardReader

ENDS_WITHIN_S = 30.0
BOTH = (signal.SIGINT, signal.SIGTERM)
TOO_BUSY = "The current node timed out during startup"
"""Ray gives up after 30 s, which a machine with other work may need."""
SEED = int(os.environ.get("RAYCLIP_SIGNALS_SEED", "19"))


@pytest.fixture
def environment():
    """That of a person's shell: no Ray to join, and a folder for one of its own, whose name must be short."""
    names = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "WANDB_SERVICE", "COVERAGE_FILE")}
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield names | {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder}


@pytest.fixture
def cluster():
    one = MiniCluster({})
    yield one
    one.close()


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(build_clip("debug-vit"), tmp_path / "debug.safetensors")
    return tmp_path / "debug.safetensors"


def train_arguments(data: str, folder: Path, *more: str) -> list[str]:
    settings = (f"data.uri={data}", f"run.dir={folder}", "checkpoint.every_steps=null")
    return ["jobs/train.py", "--config", "debug_cpu", *settings, "model.image_size_px=128", *more]


def check_ended(ending: Ending, number: int) -> None:
    assert ending.code == 128 + number, ending.output
    assert ending.took_s < ENDS_WITHIN_S, ending.output
    assert not ending.left, ending.output


def told(ending: Ending, number: int) -> str:
    """One line of the report."""
    name, load = signal.Signals(number).name, os.getloadavg()[0]
    after = f"{name} after {ending.started_s:.1f} s: code {ending.code} {ending.took_s:.1f} s later"
    return f"{after}, left {len(ending.left)}, load {load:.0f}"


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


# ------------------------------------------------------------------------------------------------------------ in `make soak`


@dataclass
class Moments:
    """Stops one command at random moments until it has been stopped `count` times; compares each finished result.

    Attributes:
        command: folder -> arguments; its result is in the folder.
        result: folder -> something that must be equal.
    """

    name: str
    command: Callable[[Path], list[str]]
    result: Callable[[Path], object]
    folder: Path
    environment: dict[str, str]
    rng: random.Random
    endings: list[tuple[int, Ending]] = field(default_factory=list)

    def run(self, count: int) -> None:
        log = self.folder / f"{self.name}.log"
        undisturbed = self._undisturbed(self.folder / "undisturbed", log)
        wanted, attempt, place = self.result(self.folder / "undisturbed"), 0, self.folder / "0"
        while len(self.endings) < count:
            number, after_s = BOTH[attempt % 2], self.rng.uniform(0.0, undisturbed.took_s)
            ending = run_job(self.command(place), number, lambda _, seconds, a=after_s: seconds > a, self.environment, log)
            attempt += 1
            print(f"{self.name}, of {undisturbed.took_s:.0f} s: {told(ending, number)}", flush=True)
            if ending.code == 0:
                assert self.result(place) == wanted
                place = self.folder / str(attempt)
                continue
            if TOO_BUSY in ending.output:
                continue
            assert ending.code == 128 + number, ending.output
            assert not ending.left, ending.output
            self.endings.append((number, ending))
        self._undisturbed(place, log)
        assert self.result(place) == wanted
        slowest = max(ending.took_s for _, ending in self.endings)
        print(f"{self.name}: {count} stops, the slowest {slowest:.1f} s; equal afterwards", flush=True)
        assert slowest < ENDS_WITHIN_S

    def _undisturbed(self, place: Path, log: Path) -> Ending:
        for _ in range(3):
            ending = run_job(self.command(place), environment=self.environment, log=log)
            if TOO_BUSY not in ending.output:
                break
        assert ending.code == 0, ending.output
        assert not ending.left, ending.left
        return ending


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
def test_ingestion_stopped_at_eight_moments(tmp_path, environment):
    with web_server() as web:
        table = write_table(tmp_path / "t.parquet", web, 160, slow_s=0.5)

        def command(folder: Path) -> list[str]:
            settings = (f"ingest.input={table}", f"ingest.output={folder}", "ingest.partition_size_rows=10")
            fetch = ("ingest.fetch.allow_addresses=[127.0.0.0/8]", "ingest.fetch.concurrency=2", "ingest.commit_every_s=3")
            return ["jobs/ingest.py", *settings, *fetch]

        Moments("ingest", command, samples_of, tmp_path, environment, random.Random(SEED)).run(8)


@pytest.mark.soak
def test_training_stopped_at_eight_moments(data_set, tmp_path, environment):
    def command(folder: Path) -> list[str]:
        return train_arguments(data_set, folder, "train.max_steps=60")

    moments = Moments("train", command, exact_rows, tmp_path, environment, random.Random(SEED + 1))
    moments.run(8)


@pytest.mark.soak
@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_training_stopped_before_while_and_after_it_waits_for_workers(data_set, tmp_path, cluster, moment, number):
    rng = random.Random(f"{SEED}/{moment}/{number}")
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    arguments = train_arguments(data_set, tmp_path / "runs", "train.max_steps=60")
    extra_s, since, node = rng.uniform(0.0, 6.0), [], []

    def when(output: str, seconds: float) -> bool:
        requested = "Requesting resources" in output
        if moment == "before":
            return seconds > extra_s or requested
        if requested and moment == "after" and not node:
            node.append(cluster.add_node())
        if requested if moment == "while" else "step 1/" in output:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > extra_s

    ending = run_job(arguments, number, when, environment, tmp_path / "log")
    print(f"train, {moment} waiting: {told(ending, number)}", flush=True)
    check_ended(ending, number)
    deadline = time.time() + 15
    while cluster.workers() and time.time() < deadline:
        time.sleep(0.1)
    assert cluster.workers() == []
    if not node:
        cluster.add_node()
    again = run_job(arguments, environment=environment, log=tmp_path / "log")
    assert again.code == 0, again.output
    undisturbed = run_job(
        train_arguments(data_set, tmp_path / "undisturbed", "train.max_steps=60"), environment=environment, log=tmp_path / "log"
    )
    assert undisturbed.code == 0, undisturbed.output
    assert exact_rows(tmp_path / "runs") == exact_rows(tmp_path / "undisturbed")


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_stopped_at_two_moments(make_data_set, tmp_path, environment, weights, workers):
    data = make_data_set(str(tmp_path / "set"), (60, 60, 60), seed=3)

    def command(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        settings = (f"evaluation.retrieval_uri={data}", "model.name=debug-vit", f"cluster.num_workers={workers}")
        return ["jobs/evaluate.py", "--config", "debug_cpu", "--weights", str(weights), "--activation", "quick_gelu",
                *settings, "--json", str(folder / "figures.json")]  # fmt: skip

    def result(folder: Path) -> object:
        return json.loads((folder / "figures.json").read_text())

    Moments("evaluate", command, result, tmp_path, environment, random.Random(SEED + 2 + workers)).run(2)


@pytest.mark.soak
def test_embedding_stopped_at_four_moments(make_data_set, tmp_path, environment, weights):
    data = make_data_set(str(tmp_path / "set"), (40, 40, 40, 40), seed=4)

    def command(folder: Path) -> list[str]:
        settings = (f"embed.data={data}", f"embed.output={folder}", "model.name=debug-vit", "embed.num_workers=1")
        return ["jobs/embed.py", "--weights", str(weights), *settings, "embed.batch_size=8"]

    def result(folder: Path) -> object:
        names = json.loads((folder / "embedding.json").read_text())["files"]
        return [pq.read_table(folder / name).to_pylist() for name in names]

    Moments("embed", command, result, tmp_path, environment, random.Random(SEED + 5)).run(4)

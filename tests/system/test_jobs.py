"""Jobs as users run them: submitted to a running cluster with token authentication."""

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.clip import build_clip
from pipeline.dataset.manifest import list_versions, read_manifest
from pipeline.storage.address import open_storage
from tests.conftest import S3_ENVIRONMENT, web_server
from tests.support.flaky_s3 import flaky_s3
from tests.support.job_server import PYTHON, ROOT, Connection, JobServer, environment
from tests.support.wandb_server import wandb_server
from training.record.tracking import read_metrics

COPY = ("--working-dir", str(ROOT))
TINY_JOB = ROOT / "tests" / "support" / "tiny_job.py"
TINY = ("--config", "debug_cpu", "optimizer.warmup_steps=2")


@pytest.fixture(scope="module")
def server(tmp_path_factory, make_data_set):
    """A cluster with keys of S3 and W&B but no endpoints, in a folder with the code and the default recipe's data."""
    project = tmp_path_factory.mktemp("project")
    (project / "jobs").symlink_to(ROOT / "jobs")
    make_data_set(str(project / "data" / "demo" / "train"), (150, 120))
    server = JobServer(project, **S3_ENVIRONMENT, WANDB_API_KEY="0" * 40)
    yield server
    server.close()


@pytest.fixture(scope="module")
def table(tmp_path_factory, draw_shape):
    """Settings of an ingestion of a table with 40 images and one dead URL."""
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    with web_server() as web:
        urls = [web.put(f"/{n}.png", draw_shape("red", "disc", n)) for n in range(40)] + [f"{web.address}/gone.png"]
        pq.write_table(pa.table({"url": urls, "caption": [f"a red disc, number {n}" for n in range(41)]}), path)
        yield (f"ingest.input={path}", "ingest.fetch.allow_addresses=[127.0.0.1/32]")


@dataclass(frozen=True)
class Made:
    """Outputs of the first two jobs of a chain, and what they printed."""

    folder: Path
    ingested: str
    trained: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> tuple[str, ...]:
        return (f"run.dir={self.folder / 'runs'}", "run.name=a")


@pytest.fixture(scope="module")
def made(server, table, tmp_path_factory):
    """A data set ingested from the table, and a run trained on it from initial weights."""
    made = Made(tmp_path_factory.mktemp("made"), "", "")
    ingested = submitted(server, "ingest", *table, f"ingest.output={made.data}")
    torch.manual_seed(0)
    torch.save(build_clip("debug-vit").state_dict(), made.folder / "weights.pt")
    start = (f"model.weights={made.folder / 'weights.pt'}", "model.activation=quick_gelu")
    held_out = f"evaluation.retrieval_uri={made.data}"
    trained = submitted(server, "train", *TINY, *made.run, *start, f"data.uri={made.data}", "train.max_steps=8", held_out)
    return Made(made.folder, ingested, trained)


def submitted(server, job: str, *arguments: str) -> str:
    """Submit a job with a working directory; return its output."""
    return output_of(server.submit(f"jobs/{job}.py", *arguments, options=COPY))


def output_of(result: subprocess.CompletedProcess[str]) -> str:
    """Output of a job that must have succeeded."""
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    return text


def at_once(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_a_table_becomes_a_data_set_and_a_run_with_readable_logs(made):
    assert "40 samples" in made.ingested
    last = r"^ingest: 41 of 41 rows \(100%\), .* rows/s, .* in all, 97\.6% success, http_404 1$"
    assert re.search(last, made.ingested, re.MULTILINE)
    assert read_manifest(open_storage(str(made.data)), 1).num_samples == 40
    assert "trained 8 steps, 256 samples" in made.trained
    for line in (
        "Requesting resources: {'CPU': 1} * 1",
        "step 1/8",
        "step 8/8",
        "evaluation at step 8",
        "checkpoint at step 8",
    ):
        assert line in made.trained
    run = made.folder / "runs" / "a"
    assert json.loads((run / "result.json").read_text())["step"] == 8
    assert "finished: 8 steps" in (run / "report.html").read_text()
    # No progress bars, colours or messages about Ray itself.
    noise = r"\r|it/s\]|\x1b\[\d+m\(|Attempting to start|Setting up process group|Execution plan"
    assert not re.search(noise, made.ingested + made.trained)


def test_a_data_set_is_curated_and_its_tars_are_indexed_by_submitted_jobs(server, made, tmp_path):
    curated, indexed = at_once(
        lambda: submitted(server, "curate", f"curate.data={made.data}", "curate.where=caption != 'a red disc, number 3'"),
        lambda: submitted(server, "index", f"index.input={made.data}/shards", f"index.output={tmp_path / 'index'}"),
    )
    assert "39 samples in version 2" in curated
    assert read_manifest(open_storage(str(made.data)), 2).num_samples == 39
    assert "index: 1 of 1 tars (100%)" in indexed
    assert "Execution plan" not in indexed
    assert read_manifest(open_storage(str(tmp_path / "index"))).num_samples == 40


def test_a_run_is_evaluated_averaged_exported_embedded_and_reported_by_submitted_jobs(server, made, tmp_path):
    figures, line, exported, features = (tmp_path / name for name in ("figures.json", "line.json", "export", "features"))
    page = made.folder / "runs" / "a" / "report.html"
    page.unlink()
    cpu = "train.device=cpu"
    at_once(
        lambda: submitted(server, "evaluate", *made.run, cpu, "--json", str(figures)),
        lambda: submitted(server, "average", *made.run, cpu, "--points", "2", "--json", str(line)),
        lambda: submitted(server, "export", *made.run, "--output", str(exported)),
    )
    at_once(
        lambda: submitted(server, "embed", *made.run, f"embed.data={made.data}", "embed.version=1", f"embed.output={features}"),
        lambda: submitted(server, "report", *made.run),
        lambda: submitted(server, "benchmark", "retrieval", "--pairs", "300", "--dimensions", "8", "--threads", "1"),
    )
    assert json.loads(figures.read_text())["evaluation/image_to_text_r1"] >= 0
    assert [point["alpha"] for point in json.loads(line.read_text())] == [0.0, 1.0]
    assert {"open_clip_model.safetensors", "export.json", "README.md"} <= {path.name for path in exported.iterdir()}
    assert sum(pq.read_table(path).num_rows for path in (features / "features").glob("*.parquet")) == 40
    assert "finished: 8 steps" in page.read_text()


def test_a_stopped_job_saves_its_current_step_and_resumes_when_submitted_again(server, data_set, tmp_path):
    settings = ("jobs/train.py", *TINY, f"data.uri={data_set}", f"run.dir={tmp_path}", "checkpoint.every_steps=null")
    settings = (*settings, "tracking.wandb_mode=null")
    here = {"WANDB_MODE": "online", "WANDB_PROJECT": "clip", "WANDB_TAGS": "a,,b", "WANDB_API_KEY": "not-sent"}
    metrics = tmp_path / "debug_cpu" / "metrics.jsonl"
    with wandb_server() as wandb:
        started = server.submit_py(
            *("--no-wait", "--submission-id", "to-be-stopped", "--", "python", *settings, "train.max_steps=4000"),
            **here,
            WANDB_BASE_URL=wandb.address,
        )
        assert (started.returncode, started.stdout) == (0, "to-be-stopped\n"), started.stderr
        for command in ("logs --follow", "status", "stop"):
            assert f"ray job {command} --address {server.address} to-be-stopped" in started.stderr
        deadline = time.time() + 180
        while time.time() < deadline and not any(row["step"] >= 5 for row in read_metrics(metrics)):
            time.sleep(0.1)
        stopped, waited = at_once(
            lambda: server.job("stop", "to-be-stopped"), lambda: server.submit_py("--wait-for", "to-be-stopped")
        )
        (run,) = wandb.runs.values()
        assert [row["_step"] for row in run.rows()] == [row["step"] for row in read_metrics(metrics) if "loss" in row]
        assert (run.settings["project"], run.settings["tags"]) == ("clip", ["a", "b"]), "typed where it was submitted"
        assert len(wandb.authorizations) == 1, "the key of the node"
    assert "was stopped" in stopped.stdout + stopped.stderr, stopped.stdout + stopped.stderr
    assert waited.returncode == 143
    assert "to-be-stopped was stopped" in waited.stderr
    last = max((row["step"] for row in read_metrics(metrics)), default=0)
    assert last >= 5, waited.stdout
    assert f"stopped at step {last:,}; the same command resumes from checkpoints/step_{last:08d}" in waited.stdout
    options = ("--runtime-env-json", json.dumps({"env_vars": {"WANDB_MODE": "offline", "WANDB_NAME": "again"}}))
    again = output_of(server.submit(*settings, f"train.max_steps={last + 2}", "run.allow_config_changes=true", options=options))
    assert f"resumes from checkpoints/step_{last:08d}" in again
    (segment,) = (tmp_path / "debug_cpu" / "wandb").glob("offline-run-*")
    assert f"W&B has this run once you upload it: wandb sync {segment}\n" in again


def test_the_default_recipe_trains_in_the_projects_folder_without_any_option(server):
    # Three steps instead of 300; otherwise this is what `ray job submit -- python jobs/train.py` does.
    output_of(server.submit("jobs/train.py", "train.max_steps=3", "optimizer.warmup_steps=1"))
    assert (server.project / "runs" / "default" / "result.json").exists()


def test_bad_input_fails_the_submission_with_its_message_and_an_exit_code_of_its_own(server, tmp_path):
    plain, told_apart = at_once(
        lambda: server.submit("jobs/train.py", "train.max_stebs=3"),
        lambda: server.submit_py("--", "python", "jobs/report.py", f"run.dir={tmp_path}", "run.name=none"),
    )
    assert plain.returncode != 0
    assert "did you mean train.max_steps?" in plain.stdout + plain.stderr
    assert told_apart.returncode == 2, told_apart.stdout + told_apart.stderr
    assert "report.py: bad input:\n  " in told_apart.stdout


def test_a_success_that_was_not_meant_has_an_exit_code_of_its_own_which_the_next_run_repeats(server, tmp_path):
    (tmp_path / "t.csv").write_text("url,caption\n" + "ftp://e.org/1,a disc\n" * 3)
    command = ("jobs/ingest.py", f"ingest.input={tmp_path / 't.csv'}", f"ingest.output={tmp_path / 'out'}")
    plain = server.submit(*command, options=("--submission-id", "not-meant"))
    assert plain.returncode == 1, "Ray's own command knows no other code"
    waited, again = at_once(
        lambda: server.submit_py("--wait-for", "not-meant"), lambda: server.submit_py("--", "python", *command)
    )
    assert (waited.returncode, again.returncode) == (3, 3), waited.stdout + again.stdout
    assert "unknown_scheme: only http, https, s3 and files are read" in waited.stdout
    assert "holds all 3 rows, of which 3 failed (unknown_scheme 3)" in again.stdout
    assert read_manifest(open_storage(str(tmp_path / "out"))).num_rows == 3, "what is committed stays"


ENDS = {"done": 0, "away": 1, "bad-input": 2, "not-meant": 3, "stopped": 143}


def test_each_exit_code_passes_through_both_commands(server):
    command = ("python", str(TINY_JOB), "--config", "debug_cpu", "--end")
    for end, code in ENDS.items():
        plain = server.job("submit", "--submission-id", f"ends-{end}", "--", *command, end)
        assert plain.returncode == int(code != 0), plain.stdout + plain.stderr  # Ray's own command knows no other
    waited = at_once(*(lambda end=end: server.submit_py("--wait-for", f"ends-{end}").returncode for end in ENDS))
    assert dict(zip(ENDS, waited, strict=True)) == ENDS
    assert server.submit_py("--", *command, "not-meant").returncode == 3


def test_a_recipes_runtime_environment_reaches_the_workers_of_both_commands_and_a_refused_write_is_bad_input(
    server, table, bucket, s3_endpoint, tmp_path
):
    def recipe(name: str, endpoint: str) -> tuple[str, ...]:
        """A recipe with the endpoint, so that only processes with its runtime environment find the bucket."""
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({"cluster": {"runtime_env": {"env_vars": {"AWS_ENDPOINT_URL": endpoint}}}}))
        return ("jobs/ingest.py", "--config", str(path), *table, f"ingest.output={bucket}/{name}")

    with flaky_s3(s3_endpoint, every_503=10**9, every_cut=10**9, read_only=True, below="/shards/") as refusing:
        plain, refused = at_once(
            lambda: server.submit(*recipe("plain", s3_endpoint), options=COPY),
            lambda: server.submit_py(*COPY, "--", "python", *recipe("refused", refusing.address)),
        )
    assert "40 samples" in output_of(plain)
    storage = open_storage(f"{bucket}/plain")
    assert sum(item.path.endswith(".tar") for item in storage.list("shards/")) == 1, "written by a worker"
    assert read_manifest(storage).num_samples == 40
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "AccessDenied" in refused.stdout, "answered to a worker, through the recipe's endpoint"
    assert "Traceback" not in refused.stdout
    assert not list_versions(open_storage(f"{bucket}/refused"))


def test_a_lost_connection_to_the_cluster_is_reopened_and_the_exit_code_is_the_jobs(server, tmp_path):
    connection = Connection(server.port)
    prints = "import sys, time\nfor n in range(40):\n    print(f'line {n}', flush=True)\n    time.sleep(0.1)\nsys.exit(7)"
    command = [str(PYTHON), str(ROOT / "jobs" / "submit.py"), "--address", connection.address, "--", "python", "-c", prints]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, env=environment(), cwd=server.project, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        seen = [next(process.stdout) for _ in range(10)]
        with connection.cut():
            time.sleep(1.5)
        seen += list(process.stdout)
    said = (tmp_path / "errors").read_text()
    assert process.wait() == 7, said
    assert [text for text in seen if text.startswith("line ")] == [f"line {n}\n" for n in range(40)]
    assert "is lost" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"RAY_AUTH_TOKEN": "another-token"}, "the cluster does not accept the token; set RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, "needs a token; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "", "HOME": "/nowhere"}, "but there is no token; set RAY_AUTH_TOKEN"),
    ],
)
def test_a_wrong_token_is_answered_with_one_line_that_says_what_to_set(server, settings, says):
    result = server.submit_py("--", "true", **settings)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1
    assert says in line

"""The version in the tree reads and continues the work of version 0.1: data sets, an index of tars, a training run.

The fixtures were written by version 0.1 itself (tests/fixtures/version_0_1/make.py); the tests give them to the commands of
the tree. They hold on any machine. Tables, images, tars and one data set are in a bucket, and any S3 server can have a bucket
of that name, so no byte of them is changed. The other data set is in a local folder, with its tables beside it: in the copy
that a test works on, the manifests and completion records name the copied tables, as if both had been moved together. Ports
appear only in rows that failed over HTTP. They are retried without permission to reach loopback addresses, so no server is
asked, whichever program has the port now.
"""

import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli.command_line import run
from pipeline.ingest.rows_digest import hash_rows, hash_rows_as_before

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "version_0_1"
RECIPE = FIXTURES / "recipe.yaml"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
"""Results of version 0.1 for the same inputs."""
BUCKET, WORKSPACE = "rayclip-version-0-1", "/tmp/rayclip-version-0-1/folder"
"""Places of version 0.1."""
FORMATS = ("csv", "jsonl", "parquet", "tsv")
SAME_ON_ANY_CPU = 1e-5
"""Relative tolerance of losses: ten times the effect of another instruction set. Lost optimizer moments make 1e-2 and more."""

Job = Callable[..., None]


class Bucket:
    """Objects of the bucket."""

    root = f"s3://{BUCKET}"

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, path: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=path, Body=data)

    def names(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(item["Key"] for page in pages if page["KeyCount"] for item in page["Contents"])

    def read(self, path: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=path)["Body"].read()

    def remove(self) -> None:
        for name in self.names(""):
            self._client.delete_object(Bucket=BUCKET, Key=name)
        self._client.delete_bucket(Bucket=BUCKET)


class Folder:
    """Files below a folder, under the same paths as the objects of the bucket."""

    def __init__(self, path: Path) -> None:
        self.root, self._path = str(path), path

    def put(self, path: str, data: bytes) -> None:
        target = self._path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def names(self, prefix: str) -> list[str]:
        return sorted(file.relative_to(self._path).as_posix() for file in files_below(self._path / prefix))

    def read(self, path: str) -> bytes:
        return (self._path / path).read_bytes()


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def put_all(place: Bucket | Folder, fixture: str, below: str = "") -> None:
    """Copies a folder of the fixtures, or a subfolder of it, to a place."""
    for path in files_below(FIXTURES / fixture / below):
        place.put(path.relative_to(FIXTURES / fixture).as_posix(), path.read_bytes())


@pytest.fixture
def old_bucket(s3_environment) -> Iterator[Bucket]:
    keys = {
        "endpoint_url": s3_environment["AWS_ENDPOINT_URL"],
        "region_name": s3_environment["AWS_DEFAULT_REGION"],
        "aws_access_key_id": s3_environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": s3_environment["AWS_SECRET_ACCESS_KEY"],
    }
    client = boto3.client("s3", **keys)
    client.create_bucket(Bucket=BUCKET)
    place = Bucket(client)
    put_all(place, "bucket")
    put_all(place, "later", "images")
    yield place
    place.remove()


@pytest.fixture
def old_folder(old_bucket, tmp_path) -> Folder:
    """A local data set and its tables; their images are in the bucket."""
    place = Folder(tmp_path / "folder")
    put_all(place, "bucket", "tables")
    put_all(place, "folder")
    for name in place.names("pairs"):
        if name.endswith(".json"):
            place.put(name, place.read(name).replace(WORKSPACE.encode(), place.root.encode()))
    return place


@pytest.fixture(params=["old_bucket", "old_folder"], ids=["bucket", "folder"])
def place(request) -> Bucket | Folder:
    return request.getfixturevalue(request.param)


@pytest.fixture
def old_run(old_bucket, tmp_path) -> Path:
    """A stopped run, whose data sets are in the bucket."""
    copy = tmp_path / "runs" / "stopped"
    shutil.copytree(FIXTURES / "run", copy)
    for path in copy.glob("checkpoints/*/*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    return copy


@pytest.fixture
def job(s3_environment, ray_session, monkeypatch, capsys) -> Job:
    """Runs a command of the tree in this process, on the Ray of the tests; it must succeed."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)

    def start(name: str, *arguments: str, recipe: Path = RECIPE) -> None:
        command = import_module(f"jobs.{name}")
        code = run(command.arguments(), command.job, ["--config", str(recipe), *arguments])
        assert code == 0, "".join(capsys.readouterr())

    return start


def summary_of(job: Job, folder: Path, *ingest: str) -> dict[str, Any]:
    """A part of the summary of an ingestion."""
    path = folder / "summary.json"
    path.unlink(missing_ok=True)
    job(*ingest, "--summary", str(path))
    summary = json.loads(path.read_text())
    return {name: summary[name] for name in ("version", "rows_held", "counts")}


def records(place: Bucket | Folder, data_set: str = "pairs") -> dict[str, dict[str, Any]]:
    """Partitions of a data set's newest version, by id."""
    manifest = json.loads(place.read(place.names(f"{data_set}/manifests")[-1]))
    return {record["id"]: record for record in manifest["partitions"]}


def added(place: Bucket | Folder, held: dict[str, dict[str, Any]], data_set: str = "pairs") -> list[dict[str, Any]]:
    """Partitions that the newest version has in addition to those held before, which must be unchanged."""
    now = records(place, data_set)
    assert {name: record for name, record in now.items() if name in held} == held
    return [record for name, record in now.items() if name not in held]


def rows_of(place: Bucket | Folder, partitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sidecar rows of partitions."""
    sidecars = (place.read(f"pairs/shards/{shard['name']}.parquet") for record in partitions for shard in record["shards"])
    return [row for sidecar in sidecars for row in pq.read_table(pa.BufferReader(sidecar)).to_pylist()]


def told(partitions: list[dict[str, Any]], *names: str) -> list[list[Any]]:
    """Fields of partitions, sorted, so that two data sets can be compared. `table` is the table's file name."""
    table = {"table": lambda record: record["input_path"].rpartition("/")[2]}
    return sorted([table[name](record) if name in table else record[name] for name in names] for record in partitions)


def test_data_sets_of_an_earlier_version_are_whole(old_bucket, old_folder, job):
    outputs = (f"{old_bucket.root}/pairs", f"{old_bucket.root}/foreign/index", f"{old_folder.root}/pairs")
    for output in outputs:
        job("ingest", f"ingest.output={output}", "--verify")


def test_a_table_of_an_earlier_version_grows_by_its_new_rows(place, job, tmp_path):
    held, objects = records(place), {name: place.read(name) for name in place.names("pairs/shards")}
    ingest = ("ingest", f"ingest.input={place.root}/tables", f"ingest.output={place.root}/pairs")
    assert summary_of(job, tmp_path, *ingest) == {"version": 2, "rows_held": 48, "counts": {}}
    put_all(place, "later", "tables")
    assert summary_of(job, tmp_path, *ingest) == {"version": 3, "rows_held": 48, "counts": {"success": 8}}
    assert {name: place.read(name) for name in objects} == objects
    new, then = added(place, held), [record for record in EXPECTED["data_sets"]["pairs"] if record["first_row"] == 12]
    essence = ("table", "first_row", "num_rows", "options_fingerprint", "counts")
    assert told(new, *essence) == told(then, *essence)
    assert {record["input_path"].rpartition(".")[2] for record in new if "text_reader" in record} == {"csv", "tsv", "jsonl"}
    (new_parquet,), (then_parquet,) = (
        [record for record in records if record["input_path"].endswith("parquet")] for records in (new, then)
    )
    table = pq.read_table(pa.BufferReader(place.read("tables/" + new_parquet["input_path"].rpartition("/")[2]))).slice(12)
    assert hash_rows_as_before(table) == then_parquet["rows_sha256"], "so that rows of then are recognised"
    assert hash_rows(table) == new_parquet["rows_sha256"]
    captions = [f'grown "by" a row, <{kind}> ü' for kind in FORMATS] + [f"grown by another row, {kind}" for kind in FORMATS]
    assert sorted(row["caption"] for row in rows_of(place, new)) == sorted(captions)


def test_failures_of_an_earlier_version_are_retried_unless_that_version_has_done_so(place, job, tmp_path):
    held = records(place)
    failed = {row["key"]: row for row in rows_of(place, list(held.values())) if row["reason"] in ("not_found", "http_503")}
    late = {key for key, row in failed.items() if row["reason"] == "not_found"}
    assert (len(failed), len(late)) == (8, 4)
    retry = ("ingest", f"ingest.output={place.root}/pairs", "--retry-failed", "not_found,http_503")
    counts = summary_of(job, tmp_path, *retry)["counts"]
    new = added(place, held)
    retried = {row["retry_of"]: row for row in rows_of(place, new)}
    assert {key for key, row in retried.items() if row["status"] == "success"} == late
    for column in ("url", "caption", "source_width", "score", "note", "seen"):
        assert all(row[column] == failed[key][column] for key, row in retried.items()), column
    if isinstance(place, Folder):
        assert counts == {"success": 4, "address_refused": 4}
    else:  # version 0.1 has retried http_503
        assert counts == {"success": 4}
        then = [record for record in EXPECTED["data_sets"]["pairs"] if record["id"] not in held and record["first_row"] == 0]
        assert told(new, "input_path", "num_rows") == told(then, "input_path", "num_rows")
        tables = {
            one["input_path"]: pq.read_table(pa.BufferReader(place.read(one["input_path"][len(place.root) + 1 :])))
            for one in then
        }
        assert [hash_rows_as_before(tables[one["input_path"]]) for one in then] == [one["rows_sha256"] for one in then]


def test_an_index_of_an_earlier_version_gets_the_new_tars(old_bucket, job):
    held = records(old_bucket, "foreign/index")
    put_all(old_bucket, "later", "foreign")
    job("index", f"index.input={old_bucket.root}/foreign/tars", f"index.output={old_bucket.root}/foreign/index")
    (new,) = added(old_bucket, held, "foreign/index")
    assert new["input_path"] == f"{old_bucket.root}/foreign/tars/00001.tar"
    then = EXPECTED["data_sets"]["foreign/index"]
    assert told([*held.values(), new], *then[0]) == told(then, *then[0])


def test_a_checkpoint_of_an_earlier_version_has_the_evaluation_figures_of_that_version(old_run, job, tmp_path):
    job("evaluate", f"run.dir={old_run.parent}", "--json", str(tmp_path / "figures.json"))
    figures, then = json.loads((tmp_path / "figures.json").read_text()), EXPECTED["run"]["figures"]
    assert figures.keys() == then.keys()
    rates = [name for name in then if name.endswith(("_r1", "_r5", "_r10"))]
    one_sample = 1.01 / 36  # two nearly equal similarities may swap their ranks on another CPU
    assert {name: figures[name] for name in rates} == pytest.approx({name: then[name] for name in rates}, abs=one_sample)


def test_a_stopped_run_of_an_earlier_version_is_reported_and_resumed_with_the_losses_of_that_version(old_run, job, tmp_path):
    stopped_at, losses = EXPECTED["run"]["stopped_at"], EXPECTED["run"]["losses"]
    job("report", f"run.dir={old_run.parent}", "--output", str(tmp_path / "report.html"))
    report = (tmp_path / "report.html").read_text()
    assert f"{stopped_at} of 60 steps" in report
    assert 'class="problems"' not in report
    job("train", f"run.dir={old_run.parent}", recipe=old_run / "config.yaml")
    rows, old = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (old_run, FIXTURES / "run"))
    assert rows[: len(old)] == old
    resumed = {str(row["step"]): row["loss"] for row in rows[len(old) :] if "loss" in row}
    assert list(resumed) == list(losses)
    assert resumed == pytest.approx(losses, rel=SAME_ON_ANY_CPU)
    result = json.loads((old_run / "result.json").read_text())
    assert (result["step"], result["finished"]) == (60, True)

"""No secret appears in any file, log or manifest: whole runs with planted keys, tokens and passwords, then a search."""

import contextlib
import gzip
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli.command_line import CLUSTER_SETTINGS, EXIT_BAD_INPUT
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from tests.conftest import free_port
from tests.support.cluster import RAY, MiniCluster
from tests.support.leaks import CONTAINERS, Search
from tests.support.runs import BARE, ROOT
from tests.support.wandb_file import BLOCK, FILE_HEADER, FIRST, FULL, HEADER, LAST
from tests.support.wandb_server import WandbServer, wandb_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID7KQ0",
    "AWS_SECRET_ACCESS_KEY": "planted+secret/key==7Kq1",
    "AWS_SESSION_TOKEN": "planted//session+token=7Kq2",
    "WANDB_API_KEY": "planted0key0of0wandb0that0is0long0enough7Kq3",
    "RAY_AUTH_TOKEN": "planted-token-of-ray-that-is-long-enough-7Kq4",
}
PASSWORDS = {name: f"planted-{name}-7Kq5" for name in ("proxy", "url", "address", "endpoint", "git")}
PLANTED = CREDENTIALS | PASSWORDS | {"a presigned address": "X-Amz-Signature"}
PUBLIC = {"bucket": "bucket-of-the-whole-run", "caption": "a caption that all may read"}
"""Public values, which the same search must find."""
PLACES = (
    *(".tar > ", ".parquet > caption", "debug_cpu/config.yaml", "checkpoint.json", "report.html", "exports/model/README.md"),
    *("whole.log", "trouble.log", "offline-run-", "run-online-", ".wandb > message", "/debug.log", "wandb-metadata.json"),
    *(
        "sent to W&B, /files/someone/rayclip/online-",
        "/file_stream: ",
        "sent to W&B, /graphql",
        "/logs/worker-",
        "/logs/train/",
    ),
)
"""Places in which the public values must be found."""
CHAIN = """
import json, runpy, sys, traceback
from jobs.cli import command_line

command_line.leave = sys.exit
command_line.end_process_with_it = lambda: None
file, codes = sys.argv[1], []
for words in json.loads(sys.argv[2]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code)
    except Exception:
        traceback.print_exc()
        codes.append(1)
open(file, "w").write(json.dumps(codes))
"""
"""Runs jobs one after another in one process, which imports torch and joins Ray once. Each prints what it prints alone."""


class TokenCluster(MiniCluster):
    """A cluster that requires a token. This process has none, so it counts the nodes in their log."""

    def __init__(self, settings: dict[str, str], dashboard_port: int | None = None) -> None:
        self._dashboard_port = dashboard_port
        super().__init__(settings)

    def node_ids(self) -> list[str]:
        return [line for line in (self.folder / "nodes.log").read_text().splitlines() if "Ray runtime started." in line]

    def _head_options(self) -> list[str]:
        if self._dashboard_port is None:
            return super()._head_options()
        options = [option for option in super()._head_options() if "dashboard" not in option]
        return [*options, f"--dashboard-port={self._dashboard_port}", f"--dashboard-agent-listen-port={free_port()}"]


@dataclass
class Scene:
    """A cluster and servers with planted secrets.

    Attributes:
        place: folder with everything that processes write on this machine, except Ray's own files.
    """

    place: Path
    cluster: TokenCluster
    wandb: WandbServer
    storage: Storage

    def run(self, name: str, *jobs: tuple[object, ...], **variables: str) -> tuple[list[int], str]:
        """Run jobs one after another; return (exit codes, output)."""
        environment = self.cluster.environment | {"RAY_ADDRESS": self.cluster.address} | variables
        log, codes = self.place / f"{name}.log", self.place / f"{name}.json"
        command = [sys.executable, "-c", CHAIN, str(codes), json.dumps([[str(word) for word in job] for job in jobs])]
        with log.open("wb") as file:
            subprocess.run(
                command, cwd=self.place / "work", env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        return json.loads(codes.read_text()), log.read_text()

    def submit(self, name: str, *words: object, dashboard: str) -> tuple[int, str]:
        """Submit one job through Ray's own command; return (exit code, output)."""
        command = [str(RAY), "job", "submit", "--address", dashboard, "--", sys.executable, *map(str, words)]
        return self._call(name, command, self.cluster.environment)

    def _call(self, name: str, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        log = self.place / f"{name}.log"
        with log.open("wb") as file:
            ended = subprocess.run(
                command, cwd=self.place / "work", env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        return ended.returncode, log.read_text()


@contextlib.contextmanager
def planted_scene(s3_endpoint, dashboard_port=None, wandb_address=None):
    """A cluster in token mode whose processes have all secrets in their environment, with an S3 server, a W&B server, and the
    address of a proxy that does not exist.
    """
    place = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # paths of sockets must be short
    for name in ("home", "tmp", "work"):
        (place / name).mkdir()
    clone_with_a_password(place / "work")
    proxy = f"http://someone:{PASSWORDS['proxy']}@127.0.0.1:9"
    settings = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
    settings |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    settings |= CREDENTIALS | {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_DEFAULT_REGION": "us-east-1", "RAY_AUTH_MODE": "token"}
    settings |= {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp")}
    with pytest.MonkeyPatch.context() as patch, wandb_server() as wandb:
        for name in ("WANDB_MODE", "WANDB_SERVICE", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=PUBLIC["bucket"])
        cluster = TokenCluster(CLUSTER_SETTINGS | settings | {"WANDB_BASE_URL": wandb_address or wandb.address}, dashboard_port)
        try:
            cluster.add_node(cpus=4)
            yield Scene(place, cluster, wandb, open_storage(f"s3://{PUBLIC['bucket']}"))
        finally:
            cluster.close()
            empty_bucket()
            shutil.rmtree(place, ignore_errors=True)


def clone_with_a_password(folder):
    """Make a git clone whose remote contains a password, as automation does; W&B records the remote of a run's code."""
    git = ("git", "-C", str(folder), "-c", "user.name=someone", "-c", "user.email=someone@example.org")
    subprocess.run([*git, "init", "-q"], check=True)
    address = f"https://someone:{PASSWORDS['git']}@example.org/work.git"
    subprocess.run([*git, "remote", "add", "origin", address], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "work"], check=True)


def empty_bucket():
    storage = open_storage(f"s3://{PUBLIC['bucket']}")
    for item in list(storage.list("")):
        storage.delete(item.path)
    boto3.client("s3").delete_bucket(Bucket=PUBLIC["bucket"])


def write_table(path, web, draw_shape):
    """Write a table of 72 images, one of them twice, and one behind a password."""
    rows = ["url,caption"]
    for number in (*range(72), 0):
        colour, shape = ("red", "green", "blue", "yellow")[number % 4], ("disc", "square", "bar", "ring")[number // 4 % 4]
        rows.append(f"{web.put(f'/{number}.png', draw_shape(colour, shape, number))},{PUBLIC['caption']}: {colour} {shape}")
    address = web.address.replace("//", f"//someone:{PASSWORDS['url']}@")
    path.write_text("\n".join([*rows, f"{address}/1.png,not fetched"]) + "\n")
    return path


def ingestion(table, pairs):
    job = (ROOT / "jobs" / "ingest.py", f"ingest.input={table}", f"ingest.output={pairs}", "ingest.image.size_px=32")
    return (*job, "ingest.fetch.allow_addresses=[127.0.0.1/32]", "--wandb", "tracking.wandb_mode=offline")


def search_everything(scene):
    """Search the folders, the bucket and the requests to W&B for secret values, which must be absent, and for public ones.

    Returns the places of the public values.
    """
    (scene.place / "table.csv").unlink()  # its passwords are its owner's
    shutil.rmtree(scene.place / "work" / ".git")
    contents = [(scene.storage.address(item.path), scene.storage.read(item.path)) for item in scene.storage.list("")]
    contents += [(f"sent to W&B, {where}", body) for where, body in scene.wandb.bodies]
    secret, public = (Search(values) for values in (PLANTED, PUBLIC))
    for search in (secret, public):
        found = [*search.in_folder(scene.place), *search.in_folder(scene.cluster.folder)]
        found += [line for where, content in contents for line in search.in_bytes(where, content)]
        if search is secret:
            assert not found, "\n".join(found)
    return found


@pytest.mark.timeout(400)
def test_a_whole_run_leaves_no_secret_anywhere(s3_endpoint, web, draw_shape):
    with planted_scene(s3_endpoint) as scene:
        bucket, jobs, began = scene.storage.uri, ROOT / "jobs", time.perf_counter()
        pairs, table = f"{bucket}/pairs", write_table(scene.place / "table.csv", web, draw_shape)
        training = ("--config", "debug_cpu", f"data.uri={pairs}", "train.max_steps=8", f"evaluation.retrieval_uri={pairs}")
        trained = (f"run.dir={bucket}/runs", "run.name=debug_cpu")
        verify = (jobs / "ingest.py", f"ingest.output={pairs}", "--verify")
        codes, text = scene.run(
            "whole",
            ingestion(table, pairs),
            verify,
            (jobs / "curate.py", f"curate.data={pairs}", "curate.drop_duplicates=true", "--materialize"),
            (jobs / "index.py", f"index.input={pairs}/shards/*.tar", f"index.output={bucket}/index"),
            (jobs / "train.py", *training, *trained, "cluster.num_workers=2", "tracking.wandb_mode=offline"),
            (jobs / "embed.py", *trained, f"embed.data={pairs}", f"embed.output={bucket}/features"),
            (jobs / "evaluate.py", *trained, "--json", "figures.json"),
            (jobs / "export.py", *trained, "--output", f"{bucket}/exports/model"),
            (jobs / "report.py", *trained, "--output", "report.html"),
            (jobs / "train.py", *training, f"run.dir=s3://someone:{PASSWORDS['address']}@bucket/runs"),
        )
        assert codes == [0] * 9 + [EXIT_BAD_INPUT], text
        assert read_manifest(open_storage(pairs)).num_samples == 72
        print(f"a whole run: {time.perf_counter() - began:.1f} s")

        (scene.place / "online.py").write_text(BARE)
        past_the_exceptions = json.dumps({"runtime_env": {"env_vars": {"NO_PROXY": "", "no_proxy": ""}}})
        codes, text = scene.run(
            "trouble",
            (scene.place / "online.py", *training[1:], trained[0], "run.name=online", "tracking.wandb_mode=online"),
            (jobs / "train.py", *training, trained[0], "run.name=fails", "cluster.max_failures=0"),
            RAY_JOB_CONFIG_JSON_ENV_VAR=past_the_exceptions,  # only workers reach S3 through the proxy
            RAY_OVERRIDE_JOB_RUNTIME_ENV="1",
        )
        assert codes == [0, 1], text
        assert text.count("ProxyConnectionError") > 1, "the workers report the cause, with their traceback"
        basic = "Basic " + b64encode(f"api:{CREDENTIALS['WANDB_API_KEY']}".encode()).decode()
        assert scene.wandb.authorizations == {basic}, "the key was sent where it belongs"
        endpoint = f"http://someone:{PASSWORDS['endpoint']}@127.0.0.1:9"
        codes, text = scene.run(
            "endpoint", (jobs / "ingest.py", f"ingest.output={pairs}", "--verify"), AWS_ENDPOINT_URL=endpoint
        )
        assert codes == [EXIT_BAD_INPUT], text
        print(f"with all that went wrong: {time.perf_counter() - began:.1f} s")
        where = "\n".join(search_everything(scene))
    for part in PLACES:
        assert part in where, f"the search did not reach {part}"


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_submitted_jobs_that_are_checked_and_fail_leave_no_secret_anywhere(s3_endpoint, web, draw_shape):
    """Submit through Ray's dashboard, with W&B behind a proxy that does not exist, and with a missing shard."""
    port, jobs = free_port(), ROOT / "jobs"
    with planted_scene(s3_endpoint, dashboard_port=port, wandb_address="http://wandb.example.org") as scene:
        dashboard, bucket = f"http://127.0.0.1:{port}", scene.storage.uri
        pairs, table = f"{bucket}/pairs", write_table(scene.place / "table.csv", web, draw_shape)
        code, text = scene.submit("ingest", *ingestion(table, pairs), dashboard=dashboard)
        assert code == 0, text
        training = (
            jobs / "train.py",
            "--config",
            "debug_cpu",
            f"data.uri={pairs}",
            f"run.dir={bucket}/runs",
            "train.max_steps=8",
        )
        training += ("tracking.wandb_mode=online", "cluster.max_failures=0")
        for name, more in (("check", ["--check"]), ("online", [])):
            code, text = scene.submit(name, *training, *more, dashboard=dashboard)
            assert code == 0, text
        assert "W&B did not start" in text
        (shard,) = read_manifest(open_storage(pairs)).shards
        scene.storage.delete(f"pairs/{shard.tar_path}")
        code, text = scene.submit("damaged", *training, "run.name=damaged", dashboard=dashboard)
        assert code == 1, text
        where = "\n".join(search_everything(scene))
    assert "/logs/job-driver-" in where, "the search reached the dashboard's logs"


VALUE = PLANTED["AWS_SECRET_ACCESS_KEY"]


def as_tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("sample.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def as_zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", content)
    return file.getvalue()


def as_parquet(value: object, metadata: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [value]}).replace_schema_metadata(metadata), file, compression="zstd")
    return file.getvalue()


def as_wandb(content: bytes) -> bytes:
    """A message that continues in the file's next block from the middle of the value."""
    room = content.index(VALUE.encode()) + len(VALUE) // 2
    before = b"\0" * (BLOCK - FILE_HEADER - HEADER - HEADER - room)
    records = [(FULL, before), (FIRST, content[:room]), (LAST, content[room:])]
    return b":W&B\0\0\0" + b"".join(struct.pack("<IHB", 0, len(part), kind) + part for kind, part in records)


SURROUNDED = f"before {VALUE} after".encode()
LEAKS = {
    "a log": SURROUNDED,
    "JSON": json.dumps({"key": VALUE}).encode(),
    "a URL": f"https://e.org/?key={quote(VALUE, safe='')}".encode(),
    "base64": b64encode(SURROUNDED),
    "base64, one byte on": b64encode(b"-" + SURROUNDED),
    "base64, two bytes on": b64encode(b"--" + SURROUNDED),
    "hex": SURROUNDED.hex().encode(),
    "gzip": gzip.compress(SURROUNDED),
    "zip": as_zip(SURROUNDED),
    "tar": as_tar(SURROUNDED),
    "gzip in a tar": as_tar(gzip.compress(SURROUNDED)),
    "tar in gzip": gzip.compress(as_tar(b64encode(SURROUNDED))),
    "parquet": as_parquet(SURROUNDED.decode()),
    "parquet, in a list of structs": as_parquet([{"env": SURROUNDED.decode()}]),
    "parquet, in bytes that are gzip": as_parquet(gzip.compress(SURROUNDED)),
    "parquet, in its metadata": as_parquet("nothing", {"env": SURROUNDED.decode()}),
    "W&B's file": as_wandb(SURROUNDED),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_planted_leak_is_found_wherever_it_is(kind, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(LEAKS[kind])
    found = list(Search(PLANTED).in_folder(tmp_path))
    assert found
    assert {line.rpartition(": ")[2] for line in found} == {"AWS_SECRET_ACCESS_KEY"}
    assert list(Search(PASSWORDS).in_folder(tmp_path)) == []


def test_the_search_opens_every_kind_of_container():
    search = Search(PLANTED)
    for content in LEAKS.values():
        list(search.in_bytes("here", content))
    assert set(search.seen) == set(CONTAINERS)
    assert VALUE.encode() not in LEAKS["W&B's file"], "a plain search of the file finds nothing"

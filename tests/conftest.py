"""Real parts for the tests: an S3 server, a web server that misbehaves on request, a small data set; and their scheduling."""

import contextlib
import gc
import io
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.odd_s3 import OddS3, keeps, odd_s3
from tests.support.serving import serving

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported anywhere: the same for servers, drivers and clients
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["WANDB_MODE"] = "disabled"  # of each run, unless a test says otherwise
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` runs two processes, and small tensors gain nothing from threads
ROOT = Path(__file__).parents[1]
RAY_TESTS = (ROOT / "tests" / "system", ROOT / "tests" / "gpu")
"""Folders whose tests may start Ray; `make quick` runs the others."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.scheduling import SharedRayScheduling

    return SharedRayScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect garbage once, after all imports: it took a fifth of this time, and the imported objects stay anyway."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _no_ray_outside_its_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests outside RAY_TESTS, and the processes they start, from starting Ray: the parent of its folder is a file."""
    if not any(request.path.is_relative_to(folder) for folder in RAY_TESTS):
        monkeypatch.setenv("RAY_TMPDIR", "/dev/null")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto S3 server in a process of its own."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 60
    while time.time() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    else:
        raise RuntimeError("the S3 server did not start")
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-that-must-not-leak",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def s3_environment(s3_endpoint: str) -> dict[str, str]:
    """Environment variables that point a process at the server."""
    return S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_endpoint}


@pytest.fixture
def bucket(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a fresh bucket, s3://...; the environment points at the server."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    import boto3

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddS3]:
    """A server with the bucket s3://bucket that treats conditional puts as the parameter says; without one, it keeps them."""
    with odd_s3(request.param if hasattr(request, "param") else keeps) as server:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": server.address}).items():
            monkeypatch.setenv(name, value)
        yield server


@dataclass
class WebServer:
    """A server on loopback; `pages` maps a path to a body, or to a function that answers through the handler."""

    address: str
    pages: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def put(self, path: str, page: bytes | Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.pages[path] = page
        return self.address + path

    def hits(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.requests)


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append((self.path, dict(self.headers)))
            page = site.pages.get(self.path)
            if callable(page):
                page(self)
                return
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

    site = WebServer("")
    with serving(Handler) as site.address:
        yield site


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as site:
        yield site


COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
SHAPES = ("disc", "square", "bar", "ring")


def draw(colour: str, shape: str, seed: int) -> bytes:
    """A PNG of 40 x 40 pixels; the seed moves the shape."""
    import random

    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    image = Image.new("RGB", (40, 40), tuple(rng.randint(200, 255) for _ in range(3)))
    left, top = rng.randint(2, 12), rng.randint(2, 12)
    box, fill, pen = (left, top, left + 24, top + 24), COLOURS[colour], ImageDraw.Draw(image)
    if shape == "disc":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "bar":
        pen.rectangle((left, top + 9, left + 24, top + 15), fill=fill)
    else:
        pen.ellipse(box, outline=fill, width=5)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def draw_shape() -> Callable[[str, str, int], bytes]:
    return draw


@pytest.fixture(scope="session")
def make_data_set() -> Callable[..., str]:
    """Write a data set of drawn shapes with the pipeline's own shard writer: (uri, shard counts) -> uri."""

    def make(uri: str, shard_counts: tuple[int, ...] = (20, 13, 31), seed: int = 0) -> str:
        import tempfile
        from datetime import UTC, datetime

        import pyarrow as pa

        from pipeline.dataset.columns import Extra
        from pipeline.dataset.manifest import PartitionRecord, commit
        from pipeline.dataset.shard import Row, StoredImage, write_shard
        from pipeline.errors import Failure
        from pipeline.storage.address import open_storage

        storage, records, number = open_storage(uri), [], seed * 100_000
        for shard_number, count in enumerate(shard_counts):
            rows, partition = [], f"{seed:04x}{shard_number:012x}"
            for row in range(count + 1):
                colour, shape = list(COLOURS)[number % 4], SHAPES[number // 4 % 4]
                outcome: StoredImage | Failure = StoredImage(draw(colour, shape, number), 40, 40, 40, 40, "{}")
                if row == min(3, count):  # every shard has a failure in its midst
                    outcome = Failure("failed_to_download", "http_404", "HTTP status 404")
                caption = f"a {colour} {shape}" + " that was drawn by hand" * (number % 3)
                shapes = Extra(pa.RecordBatch.from_pylist([{"shape": shape}]))
                rows.append(Row(f"{partition}-{row:06d}", f"http://e.org/{row}", caption, outcome, shapes.row(0)))
                number += 1
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                shard = write_shard(rows, f"{partition}-000", "png", datetime.now(UTC), folder)
                for path in (shard.tar_path, shard.sidecar_path)[0 if count else 1 :]:
                    storage.write_file(path, folder / Path(path).name)
            records.append(
                PartitionRecord(
                    id=partition,
                    input_path=f"drawn-{seed}",
                    first_row=shard_number * 1000,
                    num_rows=count + 1,
                    rows_sha256="",
                    options_fingerprint="",
                    counts={"success": count, "http_404": 1},
                    shards=(shard,),
                )
            )
        commit(storage, records)
        return uri

    return make


@pytest.fixture(scope="session")
def data_set(make_data_set: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small local data set that no test changes: 64 samples in three shards."""
    return make_data_set(str(tmp_path_factory.mktemp("data") / "shapes"))

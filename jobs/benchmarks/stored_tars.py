"""Tars of photographs, on disk and on a real S3 server on loopback, for benchmarks that read. Needs the `test` extra."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARD_SAMPLES, SHORT_SIDE_PX = 1_000, 256


class Server:
    """An S3 server in its own process."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process, self.address = process, address
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        self.environment = os.environ | keys | {"AWS_ENDPOINT_URL": address, "RAY_AUTH_MODE": "disabled"}


@contextmanager
def s3_server() -> Iterator[Server]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    faster = Path(sys.prefix) / "ministack" / "bin" / "ministack"
    if faster.exists():
        command = [str(faster)]
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "LOG_LEVEL": "ERROR"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=os.environ | settings, stdout=quiet, stderr=quiet) as process:
        try:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            server = Server(process, f"http://127.0.0.1:{port}")
            os.environ.update(server.environment)
            yield server
        finally:
            process.kill()


def write_tars(folder: Path, captions: Sequence[str], shard_samples: int = SHARD_SAMPLES) -> int:
    """Writes tars of photographs with webdataset's own writer, one sample per caption. Returns their size in bytes."""
    import io

    import webdataset
    from PIL import Image

    from jobs.benchmarks.image_server import photographs

    jpegs = []
    for photograph in photographs():
        image = Image.open(io.BytesIO(photograph))
        file = io.BytesIO()
        image.resize((SHORT_SIDE_PX * 4 // 3, SHORT_SIDE_PX), Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
        jpegs.append(file.getvalue())
    folder.mkdir()
    for first in range(0, len(captions), shard_samples):
        with webdataset.TarWriter(str(folder / f"{first // shard_samples:05d}.tar")) as tar:
            for number, text in enumerate(captions[first : first + shard_samples], start=first):
                tar.write({"__key__": f"{number:09d}", "jpg": jpegs[number % len(jpegs)], "txt": text})
    return sum(path.stat().st_size for path in folder.iterdir())


def upload(folder: Path, server: Server) -> dict[str, str]:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="benchmark")
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), "benchmark", f"tars/{path.name}")
    address = f"{server.address}/benchmark/tars"
    return {"tars": "s3://benchmark/tars", "indexed": "s3://benchmark/indexed", "http": address}


def index(tars: str, output: str) -> None:
    from pipeline.config import IndexConfig
    from pipeline.dataset.manifest import commit
    from pipeline.storage.address import open_storage
    from pipeline.versions.foreign_tars import index_tar, plan_index

    config = IndexConfig(input=tars, output=output)
    commit(open_storage(output), [index_tar(tar, config) for tar in plan_index(config, None)])

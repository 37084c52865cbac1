"""Mutated pictures, answers and tables: no crash, no hang, each a row with a reason."""

import asyncio
import io
import random
import socket
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.shard import StoredImage
from pipeline.errors import Failure, InputError
from pipeline.fetch.http_client import Fetched, Fetcher
from pipeline.ingest.plan import plan_ingest
from pipeline.transform.image import prepare_image

STATUSES = {"failed_to_download", "failed_to_resize", "dropped"}
LONGEST_S = 20.0


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, dropped, doubled or cut off; headers more often than the rest."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(min(len(content), 200)) if rng.random() < 0.6 else rng.randrange(len(content))
        match rng.randrange(5):
            case 0:
                content[place] = rng.randrange(256)
            case 1:
                content[place] ^= 1 << rng.randrange(8)
            case 2:
                del content[place : place + rng.randint(1, 64)]
            case 3:
                content[place:place] = content[place : place + rng.randint(1, 64)]
            case 4:
                if rng.random() < 0.2:
                    del content[place:]
        if not content:
            return b"\0"
    return bytes(content)


def pictures() -> list[bytes]:
    """Seeds in every format and mode."""
    photo = Image.fromarray(load_sample_images().images[0]).resize((160, 107))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    noise = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    seeds = []
    for image, format, options in (
        (photo, "JPEG", {"quality": 80, "exif": exif}),
        (photo, "JPEG", {"quality": 80, "progressive": True}),
        (photo.convert("L"), "JPEG", {}),
        (photo.convert("CMYK"), "JPEG", {}),
        (photo, "PNG", {}),
        (photo.convert("RGBA"), "PNG", {}),
        (photo.convert("P"), "PNG", {}),
        (Image.fromarray(noise), "PNG", {}),
        (photo, "WEBP", {"exif": exif}),
        (photo, "GIF", {"save_all": True, "append_images": [photo.rotate(90)]}),
        (photo, "BMP", {}),
        (photo, "TIFF", {"compression": "tiff_lzw"}),
    ):
        file = io.BytesIO()
        image.save(file, format, **options)
        seeds.append(file.getvalue())
    return seeds


def check_pictures(first: int, count: int) -> None:
    seeds, config = pictures(), ImageConfig(size_px=64, max_pixels=4_000_000)
    for number in range(first, first + count):
        rng = random.Random(number)
        data = mutate(rng, rng.choice(seeds))
        began = time.monotonic()
        outcome = prepare_image(data, config)
        assert time.monotonic() - began < LONGEST_S, f"picture {number} took too long"
        if isinstance(outcome, Failure):
            assert outcome.status in STATUSES, number
            assert outcome.reason, number
            assert outcome.message.isprintable(), number
        else:
            assert isinstance(outcome, StoredImage), number
            assert Image.open(io.BytesIO(outcome.data)).size == (outcome.width, outcome.height), number


ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 12\r\nX-Robots-Tag: all\r\n"
    b"Content-Encoding: identity\r\nRetry-After: 1\r\nSet-Cookie: a=b\r\n\r\npicture data"
)
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere?a=b#c\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\npicture data\r\n0\r\n\r\n"


def check_answers(first: int, count: int) -> None:
    """A server that answers every connection with another mutation."""
    numbers = iter(range(first, 10**9))

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            rng = random.Random(next(numbers))
            with connection:
                try:
                    connection.settimeout(2)
                    connection.recv(65536)
                    connection.sendall(mutate(rng, rng.choice((ANSWER, REDIRECT, CHUNKED))))
                except OSError:
                    continue

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    port = server.getsockname()[1]
    config = FetchConfig(
        allow_addresses=("127.0.0.1/32",),
        attempts=1,
        total_timeout_s=2,
        read_timeout_s=1,
        host_max_failures=10**6,
        max_redirects=3,
    )

    async def work() -> list[Fetched | Failure]:
        async with Fetcher(config) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(f"http://127.0.0.1:{port}/{number}") for number in range(count)))

    outcomes = asyncio.run(asyncio.wait_for(work(), 60 + count / 2))
    server.close()
    assert len(outcomes) == count
    for outcome in outcomes:
        assert isinstance(outcome, Fetched) or (outcome.status == "failed_to_download" and outcome.reason)


def check_tables(folder, first: int, count: int) -> None:
    """A mutated table is planned, or refused as a whole with its name."""
    table = pa.table(
        {
            "url": [f"http://example.com/{number}.jpg" for number in range(300)],
            "caption": [f'caption "{number}", of many' for number in range(300)],
            "width": list(range(300)),
        }
    )
    seeds = {}
    pq.write_table(table, folder / "seed.parquet", row_group_size=100)
    pyarrow.csv.write_csv(table, folder / "seed.csv")
    seeds["parquet"], seeds["csv"] = ((folder / f"seed.{suffix}").read_bytes() for suffix in ("parquet", "csv"))
    seeds["jsonl"] = b"".join(b'{"url": "http://example.com/%d.jpg", "caption": "c %d"}\n' % (n, n) for n in range(300))
    for number in range(first, first + count):
        rng = random.Random(number)
        suffix = rng.choice(list(seeds))
        path = folder / f"t.{suffix}"
        path.write_bytes(mutate(rng, seeds[suffix]))
        config = IngestConfig(input=str(path), output=str(folder / "out"), partition_size_rows=100)
        refusal = ""
        try:
            assert all(spec.num_rows <= 100 for spec in plan_ingest(config, dry_run=True).partitions), number
        except InputError as error:
            refusal = str(error)
        assert not refusal or str(path) in refusal or "column" in refusal, number


def test_mutated_pictures():
    check_pictures(0, 300)


def test_mutated_answers():
    check_answers(0, 100)


def test_mutated_tables(tmp_path):
    check_tables(tmp_path, 0, 100)


@pytest.mark.soak
def test_ten_thousand_mutations(tmp_path):
    check_pictures(1_000, 6_000)
    check_answers(1_000, 2_000)
    check_tables(tmp_path, 1_000, 2_000)

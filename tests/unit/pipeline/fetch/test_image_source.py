"""Pictures that are held already: objects, files and bytes, only where the configuration allows them."""

import asyncio
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.manifest import read_sidecar
from pipeline.errors import Failure
from pipeline.fetch.http_client import Fetched
from pipeline.fetch.image_source import ImageSource
from pipeline.fetch.memory_budget import Memory
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage


def fetch(url: str, table: str = "", **options) -> Fetched | Failure:
    async def one():
        async with ImageSource(FetchConfig(**options), table) as source:
            claim = Memory(1 << 20).claim(0)
            return await source.fetch(url, claim)

    return asyncio.run(one())


def reason(url: str, **options) -> str:
    outcome = fetch(url, **options)
    assert isinstance(outcome, Failure), outcome
    return outcome.reason


def test_objects_are_read_under_the_prefixes_that_are_allowed(bucket):
    storage = open_storage(bucket)
    for path in ("photos/a.jpg", "private/b.jpg", "photos-private/c.jpg"):
        storage.write(path, b"bytes of " + path.encode())
    storage.write("photos/empty", b"")
    allowed = {"allow_s3": (f"{bucket}/photos",)}
    assert fetch(f"{bucket}/photos/a.jpg", **allowed) == Fetched(b"bytes of photos/a.jpg")
    assert reason(f"{bucket}/private/b.jpg", **allowed) == "address_refused"
    assert reason(f"{bucket}/photos-private/c.jpg", **allowed) == "address_refused"
    assert reason(f"{bucket}/photos/none", **allowed) == "not_found"
    assert reason(f"{bucket}/photos/empty", **allowed) == "empty_body"
    assert reason(f"{bucket}/photos/a.jpg", **allowed, max_bytes=5) == "too_large"
    assert reason(f"{bucket}/photos/a.jpg") == "unknown_scheme"


def test_files_are_read_under_the_folders_that_are_allowed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a b.jpg").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "secret")
    allowed = {"allow_files": (str(tmp_path / "photos"),)}
    for url in ("a b.jpg", f"{tmp_path}/photos/a b.jpg", f"file://{tmp_path}/photos/a%20b.jpg", "./x/../a b.jpg"):
        assert fetch(url, **allowed) == Fetched(b"a"), url
    for url in (
        f"FILE://{tmp_path}/photos/a%20b.jpg",
        f"file:{tmp_path}/photos/a%20b.jpg",
        f"File://localhost{tmp_path}/photos/a%20b.jpg",
    ):
        assert isinstance(fetch(url, allow_files=(f"{tmp_path}/photos",)), Fetched), url
    assert reason("data:image/png;base64,AAAA", allow_files=(f"{tmp_path}/photos",)) == "unknown_scheme"
    for url in ("../secret", f"{tmp_path}/secret", "link", f"file://{tmp_path}/photos/../secret", "/etc/passwd"):
        assert reason(url, **allowed) == "address_refused", url
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a b.jpg").write_bytes(b"b")
    both = {"allow_files": (str(tmp_path / "photos"), str(tmp_path / "more"))}
    assert "have this file: write its whole path" in fetch("a b.jpg", **both).message
    assert fetch(f"{tmp_path}/more/a b.jpg", **both) == Fetched(b"b")
    assert "a file of another machine, server" in fetch(f"file://server{tmp_path}/photos/a%20b.jpg", **allowed).message
    assert reason("none.jpg", **allowed) == "not_found"
    assert reason("", **allowed) == "not_found"
    assert reason("nul\x00byte", **allowed) == "bad_url"
    assert reason(f"{tmp_path}/photos/a b.jpg") == "bad_url"
    assert reason(f"file://{tmp_path}/photos/a%20b.jpg") == "unknown_scheme"


def test_a_relative_path_is_looked_for_beside_the_table_first(tmp_path):
    for folder, content in (("data/tables", b"beside"), ("data", b"above"), ("photos", b"photos"), ("elsewhere", b"no")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "1.jpg").write_bytes(content)
    table, allowed = str(tmp_path / "data/tables/t.csv"), (str(tmp_path / "data"), str(tmp_path / "photos"))
    assert fetch("1.jpg", table, allow_files=allowed) == Fetched(b"beside")
    assert fetch("tables/1.jpg", table, allow_files=allowed) == Fetched(b"beside"), "else below the folders that are allowed"
    assert fetch("1.jpg", table, allow_files=allowed[1:]) == Fetched(b"photos"), "beside the table is not allowed"
    assert reason("../../elsewhere/1.jpg", table=table, allow_files=allowed) == "address_refused"
    assert fetch("1.jpg", "s3://bucket/t.csv", allow_files=allowed[:1]) == Fetched(b"above")


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_bytes_needs_no_url(tmp_path, nested):
    values = [png(1), None, b"", b"no picture", png(2)]
    column = [{"bytes": value, "path": "x"} for value in values] if nested else values
    pq.write_table(pa.table({"picture": column, "caption": list("abcde")}), tmp_path / "t.parquet")
    config = IngestConfig(
        input=str(tmp_path / "t.parquet"),
        output=str(tmp_path / "out"),
        bytes_column="picture",
        image=ImageConfig(format="png", quality=1),
    )
    (spec,) = plan_ingest(config).partitions
    record = ingest_partition(spec, config)
    assert record.counts == {"empty_body": 2, "not_an_image": 1, "success": 2}
    rows = read_sidecar(open_storage(config.output), record.shards[0]).to_pylist()
    assert [row["reason"] for row in rows] == ["success", "empty_body", "empty_body", "not_an_image", "success"]
    assert "picture" not in rows[0]


def test_a_partition_is_cut_into_as_many_shards_as_its_bytes_need(tmp_path):
    pictures = [png(shade) for shade in range(30)]
    pq.write_table(pa.table({"picture": pictures, "caption": [str(n) for n in range(30)]}), tmp_path / "t.parquet")
    config = IngestConfig(
        input=str(tmp_path / "t.parquet"),
        output=str(tmp_path / "out"),
        bytes_column="picture",
        shard_size_bytes=20_000,
        memory_bytes=1000,
    )
    (spec,) = plan_ingest(config).partitions
    record = ingest_partition(spec, config)
    assert len(record.shards) > 2
    assert [shard.name.split("-")[1] for shard in record.shards] == [f"{n:03d}" for n in range(len(record.shards))]
    storage = open_storage(config.output)
    captions = [row["caption"] for shard in record.shards for row in read_sidecar(storage, shard).to_pylist()]
    assert captions == [str(n) for n in range(30)]

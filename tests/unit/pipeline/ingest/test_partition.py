"""A partition is ingested end to end in one process."""

import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.manifest import read_sidecar
from pipeline.dataset.purged_urls import record_purge
from pipeline.errors import InputError
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def config(web, tmp_path):
    rows = ["url,caption"]
    for number in range(12):
        rows.append(f"{web.put(f'/{number}.png', png(number))},picture {number}")
    rows += [f"{web.address}/gone,gone", f"{web.put('/html', b'<html>')},html", f"{web.address}/1.png,  ", ",no url"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    return IngestConfig(
        input=str(tmp_path / "t.csv"),
        output=str(tmp_path / "out"),
        fetch=FetchConfig(allow_addresses=("127.0.0.1/32",)),
        image=ImageConfig(size_px=32, format="png", quality=1),
    )


def test_every_row_comes_back_in_order_with_its_reason(config):
    (spec,) = plan_ingest(config).partitions
    record = ingest_partition(spec, config)
    assert record.counts == {"bad_url": 1, "empty_caption": 1, "http_404": 1, "not_an_image": 1, "success": 12}
    assert sum(record.counts.values()) == record.num_rows == 16
    storage = open_storage(config.output)
    table = read_sidecar(storage, record.shards[0]).to_pylist()
    assert [row["caption"] for row in table[:12]] == [f"picture {number}" for number in range(12)]
    assert storage.size(record.shards[0].tar_path) == record.shards[0].tar_size_bytes


def test_a_url_that_was_purged_is_not_fetched_again_and_leaves_no_trace(config, web):
    storage, url = open_storage(config.output), f"{web.address}/4.png"
    record_purge(storage, [url, f"{web.address}/gone"])
    (spec,) = plan_ingest(config).partitions
    record = ingest_partition(spec, config)
    assert (record.counts["removed"], record.counts["success"], "http_404" in record.counts) == (2, 11, False)
    assert web.hits("/4.png") == 0
    row = read_sidecar(storage, record.shards[0]).to_pylist()[4]
    assert (row["status"], row["url"], row["caption"]) == ("dropped", "", "")
    assert all(url.encode() not in storage.read(item.path) for item in storage.list("shards/"))


def test_of_two_workers_at_one_partition_the_first_completion_record_wins(config, web):
    both, shades = threading.Barrier(2, timeout=30), itertools.count(1)

    def page(handler):
        both.wait()  # neither is done before the other has begun
        body = png(next(shades))  # and the web does not answer them alike
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    web.put("/0.png", page)
    (spec,) = plan_ingest(config).partitions
    with ThreadPoolExecutor(2) as workers:
        one, other = workers.map(lambda _: ingest_partition(spec, config), range(2))
    assert one == other
    tars = [item.path for item in open_storage(config.output).list("shards/") if item.path.endswith(".tar")]
    assert len(tars) == 2, "the loser's tar is an orphan beside the winner's"
    assert one.shards[0].tar_path in tars


def test_a_partition_that_another_run_has_done_meanwhile_is_not_fetched_again(config, web):
    (spec,) = plan_ingest(config).partitions
    first = ingest_partition(spec, config)
    asked = len(web.requests)
    assert ingest_partition(spec, config) == first
    assert len(web.requests) == asked


@pytest.mark.parametrize("rows", [slice(5), slice(None, None, -1)])
def test_a_table_that_is_written_again_under_a_run_is_an_error_and_no_endless_wait(config, tmp_path, rows):
    table = tmp_path / "t.parquet"
    pq.write_table(pyarrow.csv.read_csv(tmp_path / "t.csv"), table)
    config = config.model_copy(update={"input": str(table)})
    (spec,) = plan_ingest(config).partitions
    whole = pq.read_table(table)
    pq.write_table(whole.take(list(range(whole.num_rows))[rows]), table)
    with pytest.raises(InputError, match="are not those that were planned: the table was written again meanwhile"):
        ingest_partition(spec, config)
    assert list(open_storage(config.output).list("partitions/")) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_password_in_a_url_is_in_no_object_of_the_data_set(config, tmp_path, web, suffix):
    address = web.address.removeprefix("http://")
    rows = [
        {"url": f"http://someone:pa55w0rd@{address}/1.png", "caption": "one"},
        {"url": f"{web.address}/2.png", "caption": "two"},
    ]
    table = tmp_path / f"u.{suffix}"
    (pq.write_table if suffix == "parquet" else pyarrow.csv.write_csv)(pa.Table.from_pylist(rows), table)
    config = config.model_copy(update={"input": str(table)})
    (spec,) = plan_ingest(config).partitions
    record = ingest_partition(spec, config)
    assert record.counts == {"bad_url": 1, "success": 1}
    storage = open_storage(config.output)
    assert [row["url"] for row in read_sidecar(storage, record.shards[0]).to_pylist()] == [
        f"http://***@{address}/1.png",
        f"{web.address}/2.png",
    ]
    for item in storage.list(""):
        table = pq.read_table(storage.local_path(item.path)) if item.path.endswith("parquet") else storage.read(item.path)
        assert "pa55w0rd" not in str(table.to_pylist() if isinstance(table, pa.Table) else table), item.path

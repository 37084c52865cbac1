"""Ingestion as a scheduler runs it: repeatedly, over tables that grow, with runs that overlap."""

import csv
import io
import json
import random
import subprocess
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli.command_line import CLUSTER_SETTINGS
from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.manifest import commit, list_versions, read_manifest, read_sidecar
from pipeline.ingest.driver import _shuffled
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage
from pipeline.storage.local import LocalStorage
from tests.conftest import draw
from tests.support.cluster import MiniCluster, wait_until

AT_WORK = 5
"""Number of pages that a run must have requested to count as being at work."""
WAITS_AFTER = 25
"""Number of pages after which a run is held until the next one is at work."""


class Site:
    """Pages that know which run requests them; an earlier run is held until the next is at work, so that they overlap."""

    def __init__(self, web, num_runs):
        self.web, self.num_runs, self.asked = web, num_runs, [Counter() for _ in range(num_runs)]
        self.spans = defaultdict(list)
        self._image, self._moved = draw("red", "disc", 0), threading.Condition()

    def put(self, number):
        return self.web.put(f"/{number}.png", self._answer)

    def at_work(self, run):
        return self.asked[run].total() >= AT_WORK

    def _answer(self, handler):
        run = int(handler.headers["User-Agent"].partition("+run-")[2].rstrip(")"))
        with self._moved:
            self.asked[run][handler.path] += 1
            self.spans[run].append(time.monotonic())
            self._moved.notify_all()
            if run + 1 < self.num_runs and self.asked[run].total() > WAITS_AFTER:
                self._moved.wait_for(lambda: self.at_work(run + 1), timeout=90)
        time.sleep(0.1)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self._image)))
        handler.end_headers()
        handler.wfile.write(self._image)


class Tables:
    """A csv, a parquet and later a jsonl table, which grow by numbered rows."""

    def __init__(self, uri, site):
        self.storage, self.site, self.num_rows = open_storage(uri), site, 0
        self.csv, self.parquet, self.jsonl = b"url,caption\n", [], []

    def _rows(self, count):
        first, self.num_rows = self.num_rows, self.num_rows + count
        return [{"url": self.site.put(number), "caption": f"picture {number}"} for number in range(first, self.num_rows)]

    def grow(self, count, jsonl=0):
        self.parquet += self._rows(count)
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self.parquet), file)
        self.storage.write("b.parquet", file.getvalue())
        if jsonl:
            self.jsonl += self._rows(jsonl)
            self.storage.write("c.jsonl", "".join(json.dumps(row) + "\n" for row in self.jsonl).encode())
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(row.values() for row in self._rows(count))
        self._write_csv(self.csv + text.getvalue().encode())

    def _write_csv(self, data):
        """Replace the table, or on a disk append to it, as a program that writes row by row does."""
        if isinstance(self.storage, LocalStorage):
            path = self.storage.local_path("a.csv")
            with path.open("ab") as file:
                file.write(data[path.stat().st_size :])
        else:
            self.storage.write("a.csv", data)
        self.csv = data

    def begin_a_row(self):
        """Append half of a line, which a run may find."""
        self._write_csv(self.csv + f"{self.site.put(self.num_rows)},pic".encode())

    def end_the_row(self):
        self._write_csv(self.csv + f"ture {self.num_rows}\n".encode())
        self.num_rows += 1


@pytest.fixture(scope="module")
def cluster(s3_endpoint):
    from tests.conftest import S3_ENVIRONMENT

    one = MiniCluster(CLUSTER_SETTINGS | S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_endpoint})
    for _ in range(2):
        one.add_node(cpus=3)
    yield one
    one.close()


def start(cluster, tables, output, log, run=0, *options):
    settings = (
        f"ingest.input={tables}",
        f"ingest.output={output}",
        "ingest.partition_size_rows=10",
        "ingest.commit_every_s=1",
        "ingest.num_workers=2",
        "ingest.image.size_px=32",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
        "ingest.fetch.concurrency=4",
        "ingest.fetch.read_timeout_s=100",
        "ingest.fetch.total_timeout_s=100",
        f"ingest.fetch.user_agent_contact=run-{run}",
    )
    return cluster.job("jobs/ingest.py", *settings, *options, log=log)


@pytest.mark.parametrize(
    ("tables_are", "output_is"),
    [
        ("local", "s3"),
        pytest.param("local", "local", marks=pytest.mark.soak),
        pytest.param("s3", "s3", marks=pytest.mark.soak),
    ],
)
def test_overlapping_runs_over_growing_tables_ingest_each_row_once(cluster, web, tmp_path, bucket, tables_are, output_is):
    places = {"local": str(tmp_path), "s3": bucket}
    output, log = f"{places[output_is]}/out", tmp_path / "log"
    site = Site(web, num_runs=3)
    tables = Tables(f"{places[tables_are]}/tables", site)
    tables.grow(60)
    runs: list[subprocess.Popen[bytes]] = []
    for run in range(site.num_runs):  # the scheduler; the tables grow between the runs, and while one is at work
        if run:
            tables.end_the_row()
            tables.grow(15, jsonl=20 * run)
        if run < site.num_runs - 1:
            tables.begin_a_row()
        runs.append(start(cluster, tables.storage.uri, output, log, run))
        wait_until(partial(site.at_work, run), runs[run], log)
        assert all(one.poll() is None for one in runs[-2:]), "the run before is still at work"
    for one in runs:
        assert one.wait(timeout=120) == 0, log.read_text()
    for earlier, later in ((0, 1), (1, 2)):
        assert min(site.spans[later]) < max(site.spans[earlier]), "both fetched at the same time"
    check(site, tables, output)
    asked, versions, last = len(web.requests), list_versions(open_storage(output)), tmp_path / "last"
    for options, words in (((), "nothing to do"), (("--verify",), " 0 problems")):
        assert start(cluster, tables.storage.uri, output, last, 2, *options).wait(timeout=60) == 0, last.read_text()
        assert words in last.read_text().splitlines()[-1]
    assert (len(web.requests), list_versions(open_storage(output))) == (asked, versions)


def test_two_runs_that_start_together_fetch_few_rows_twice(web, tmp_path):
    """Two runs of two workers each, without Ray. In one common order they would fetch nearly all rows twice."""
    num_rows, image, lock = 400, draw("red", "disc", 0), threading.Lock()

    def page(handler):
        time.sleep(random.uniform(0.02, 0.06))
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image)))
        handler.end_headers()
        handler.wfile.write(image)

    rows = [{"url": web.put(f"/{number}.png", page), "caption": f"picture {number}"} for number in range(num_rows)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    config = IngestConfig(
        input=str(tmp_path / "t.parquet"),
        output=str(tmp_path / "out"),
        partition_size_rows=10,
        fetch=FetchConfig(allow_addresses=("127.0.0.1/32",), concurrency=4),
        image=ImageConfig(size_px=32),
    )
    plans = [_shuffled(plan_ingest(config)) for _ in range(2)]
    left = [iter(plan.partitions) for plan in plans]

    def work(run):
        while True:
            with lock:
                spec = next(left[run], None)
            if spec is None:
                return
            commit(open_storage(config.output), [ingest_partition(spec, config)])

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, (0, 0, 1, 1)))
    manifest = read_manifest(open_storage(config.output))
    assert (manifest.num_samples, len(manifest.partitions)) == (num_rows, 40)
    twice = len(web.requests) / num_rows - 1
    print(f"{twice:.0%} of the rows were fetched twice")
    assert twice < 0.5


def check(site, tables, output):
    """Check that every row of the tables is in the data set once."""
    storage = open_storage(output)
    manifest = read_manifest(storage)
    rows = [row for shard in manifest.shards for row in read_sidecar(storage, shard).to_pylist()]
    expected = [{"url": f"{site.web.address}/{n}.png", "caption": f"picture {n}"} for n in range(tables.num_rows)]
    found = sorted(rows, key=lambda row: int(Path(row["url"]).stem))
    assert [{"url": row["url"], "caption": row["caption"]} for row in found] == expected
    assert {row["reason"] for row in rows} == {"success"}
    assert len({row["key"] for row in rows}) == manifest.num_samples == tables.num_rows
    fetches = sum((run.total() for run in site.asked), start=0)
    print(f"{fetches} fetches for {tables.num_rows} rows: {fetches / tables.num_rows - 1:.0%} of the rows were fetched twice")

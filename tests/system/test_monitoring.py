"""During a real ingestion and a real training, a node's metrics port exports everything that dashboard and alerts use."""

import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.cli.config import load_config
from pipeline.errors import StorageError
from pipeline.storage.address import open_storage
from tests.support.flaky_s3 import flaky_s3
from tests.support.monitoring_checks import OURS, RAYS

pytestmark = pytest.mark.usefixtures("ray_session")


class Seen:
    """Everything that a frequently scraping Prometheus would hold."""

    def __init__(self):
        self.values = defaultdict(dict)  # name -> labels -> last value
        self.kinds = {}

    def scrape(self):
        import ray

        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.values[sample.name][frozenset(sample.labels.items())] = sample.value
                self.kinds[sample.name] = family.type

    def of(self, name, **labels):
        """Values with these labels, by the process that exported them."""
        found = {}
        for own, value in self.values[name].items():
            if labels.items() <= own:
                found[dict(own)["WorkerId"]] = value
        return found

    def lacks(self):
        """Expected names without a sample that has the expected labels."""
        known = (OURS | RAYS).items()
        return {name for name, labels in known if not any(labels <= {key for key, _ in own} for own in self.values[name])}


@contextmanager
def scraping():
    """Scrape every 2 s: Ray reports every 10 s and values expire after 20, so one scrape at the end would miss some."""
    seen, ended = Seen(), threading.Event()

    def scrape():
        while not ended.wait(2.0):
            seen.scrape()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def ingest(web, bucket, tmp_path, draw_shape):
    from pipeline.ingest.driver import run_ingest

    urls = [web.put(f"/{n}.png", draw_shape("red", "disc", n)) if n % 3 else f"{web.address}/gone/{n}" for n in range(120)]
    (tmp_path / "t.csv").write_text("\n".join(["url,caption", *(f"{url},a disc" for url in urls), ""]))
    return run_ingest(
        load_config(
            "default",
            [
                f"ingest.input={tmp_path / 't.csv'}",
                f"ingest.output={bucket}/pairs",
                "ingest.partition_size_rows=20",
                "ingest.fetch.allow_addresses=[127.0.0.1/32]",
                "ingest.min_success_share=0.9",
            ],
        ).ingest
    )


def use_an_s3_that_is_busy_once_and_refuses_writes(bucket, s3_endpoint, monkeypatch):
    with flaky_s3(s3_endpoint, every_503=2, read_only=True) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.address)
        assert list(open_storage(bucket).list("pairs/shards/"))
        assert list(open_storage(bucket).list("pairs/shards/"))
        with pytest.raises(StorageError, match="AccessDenied"):
            open_storage(bucket).write("a", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)


def test_every_metric_that_is_shown_is_exported_with_its_labels(
    bucket, s3_endpoint, web, tmp_path, data_set, draw_shape, monkeypatch
):
    from training.worker import run_training

    with scraping() as seen:
        summary = ingest(web, bucket, tmp_path, draw_shape)
        use_an_s3_that_is_busy_once_and_refuses_writes(bucket, s3_endpoint, monkeypatch)
        settings = [
            f"data.uri={bucket}/pairs",
            f"run.dir={bucket}/runs",
            "run.name=seen",
            f"evaluation.retrieval_uri={data_set}",
        ]
        settings += ["train.max_steps=6", "train.global_batch_size=8", "optimizer.warmup_steps=2", "cluster.num_workers=2"]
        result = run_training(load_config("debug_cpu", settings))
        deadline = time.monotonic() + 25
        while seen.lacks() and time.monotonic() < deadline:
            time.sleep(0.5)

    assert seen.lacks() == set()
    for name in OURS:
        assert seen.kinds[name] == ("counter" if name.endswith("_total") else "gauge"), name
    data = {"data_set": f"{bucket}/pairs"}
    assert summary.counts == {"success": 80, "http_404": 40}
    for reason, rows in summary.counts.items():
        assert list(seen.of("ray_rayclip_ingest_rows_total", reason=reason, **data).values()) == [rows]
    for name, value in (
        ("partitions_total", 6),
        ("partitions_left", 0),
        ("version", 1),
        ("samples", 80),
        ("commits_total", 1),
        ("not_meant_total", 1),
    ):
        assert list(seen.of(f"ray_rayclip_ingest_{name}", **data).values()) == [value], name
    stored = sum(item.size_bytes for item in open_storage(f"{bucket}/pairs").list("shards/") if "_stats" not in item.path)
    assert list(seen.of("ray_rayclip_ingest_stored_bytes_total", **data).values()) == [stored]

    for name, value in (("step", 6), ("checkpoint_step", 6), ("workers", 2), ("starts", 1), ("samples_seen", 48)):
        assert list(seen.of(f"ray_rayclip_train_{name}", run="seen").values()) == [value], name
    assert list(seen.of("ray_rayclip_train_loss", run="seen").values()) == [pytest.approx(result.final_loss)]

    of_ranks = seen.of("ray_rayclip_storage_requests_total", run="seen")
    assert len(of_ranks) == 2, "both ranks read, and each reports it"
    assert min(of_ranks.values()) > 0
    actors_and_driver = seen.of("ray_rayclip_storage_requests_total", **data)
    assert len(actors_and_driver) >= 2
    assert sum(seen.of("ray_rayclip_storage_retries_total", **data).values()) == 1
    assert sum(seen.of("ray_rayclip_storage_failures_total", **data).values()) == 1

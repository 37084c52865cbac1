"""What is published keeps Prometheus' rules, reaches Ray as it is, and stops no work when it cannot."""

import logging
import re
import subprocess
import sys
import threading
import time

import pytest

from pipeline import metrics
from pipeline.metrics import INGESTION, STORAGE, Publisher, publish_requests
from pipeline.storage.s3_request_counts import count
from tests.support.metrics_library import MetricsLibrary
from training.metrics import TRAINING

ALL = [one for table in (TRAINING, INGESTION, STORAGE) for one in table.values()]
BASE_UNITS = {"", "seconds", "bytes", "ratio"}


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_name_keeps_the_rules_of_prometheus(metric):
    assert re.fullmatch(r"rayclip_(train|ingest|storage)(_[a-z]+)+", metric.name)
    assert metric.unit in BASE_UNITS
    assert metric.name.endswith(metric.unit)
    last = metric.name.rsplit("_", 1)[1]
    assert last not in {"total", "count", "sum", "bucket", "info"}, "these are the exporter's"
    assert last not in {"ms", "s", "kb", "mb", "percent"}, "not a base unit"
    assert metric.unit or last not in BASE_UNITS or metric.name.endswith("_per_second"), "the unit is stated"
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    assert metric.description


def test_no_name_stands_twice():
    names = [metric.name for metric in ALL]
    assert len(set(names)) == len(names)


def test_counters_add_up_under_all_their_labels():
    library = MetricsLibrary()
    publisher = Publisher(INGESTION, {"data_set": "s3://b/d"}, library)
    publisher.add("rows", 3, reason="success")
    publisher.add("rows", 4, reason="success")
    publisher.add("rows", 0, reason="http_404")
    assert library.of("rayclip_ingest_rows", data_set="s3://b/d", reason="success") == 7
    assert library.names() == {"rayclip_ingest_rows"}
    assert len(library.values) == 1, "Ray takes no zero"


def test_gauges_are_told_again_and_again_and_once_more_at_the_end(monkeypatch):
    monkeypatch.setattr(metrics, "TOLD_EVERY_S", 0.01)
    library = MetricsLibrary()
    key = ("rayclip_ingest_version", (("data_set", "d"),))
    with Publisher(INGESTION, {"data_set": "d"}, library) as publisher:
        publisher.set("version", 3)
        deadline = time.monotonic() + 10
        while key not in library.told or library.told[key] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        publisher.set("version", 4)
    told = library.told[key]
    assert library.values[key] == 4
    time.sleep(0.05)
    assert library.told[key] == told, "nothing is told after the end"
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_what_is_set_last_is_told_also_of_work_that_ends_at_once():
    library = MetricsLibrary()
    with Publisher(TRAINING, {"run": "r"}, library) as publisher:
        publisher.set("loss", 2.5)
        publisher.set("loss", 1.5)
        publisher.set("evaluation", 0.25, figure="r1")
    assert library.of("rayclip_train_loss", run="r") == 1.5
    assert library.of("rayclip_train_evaluation", run="r", figure="r1") == 0.25


def test_a_library_that_fails_is_one_warning_and_the_work_goes_on(caplog):
    library = MetricsLibrary(error=RuntimeError("the agent is gone"))
    with Publisher(INGESTION, {"data_set": "d"}, library) as publisher:
        publisher.set("version", 1)
        for _ in range(5):
            publisher.add("commits")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "metrics of this process stop here (RuntimeError: the agent is gone)" in caplog.text


def test_a_library_that_cannot_make_a_metric_is_one_warning_too(caplog):
    with Publisher(INGESTION, {"data_set": "d"}, object()) as publisher:
        publisher.add("commits")
        publisher.set("version", 1)
    assert len(caplog.records) == 1


def test_without_a_library_nothing_is_told_and_nothing_fails(caplog):
    with Publisher(INGESTION, {"data_set": "d"}, None) as publisher:
        publisher.add("commits")
        publisher.set("version", 1)
    publish_requests(None)
    count("retries")
    assert not caplog.records


def test_requests_are_published_as_those_of_whoever_asked_last():
    library = MetricsLibrary()
    publish_requests(library, run="a")
    count("requests", 2)
    publish_requests(library, data_set="s3://user:secret@b/d")
    count("retries")
    publish_requests(None)
    count("retries")
    assert library.values == {
        ("rayclip_storage_requests", (("data_set", ""), ("run", "a"))): 2,
        ("rayclip_storage_retries", (("data_set", "s3://***@b/d"), ("run", ""))): 1,
    }


def test_a_label_holds_no_user_and_no_password():
    library = MetricsLibrary()
    with Publisher(INGESTION, {"data_set": "s3://key:secret@bucket/pairs"}, library) as publisher:
        publisher.add("commits")
    assert list(library.values) == [("rayclip_ingest_commits", (("data_set", "s3://***@bucket/pairs"),))]


def test_the_modules_that_count_import_no_ray():
    code = "import sys, pipeline.metrics, pipeline.storage.base, training.metrics; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"

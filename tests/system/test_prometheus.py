"""A real Prometheus, started as infra/monitoring/prometheus.yml says, scrapes a Ray that ingests and trains."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_NOT_MEANT
from tests.conftest import free_port
from tests.support.cluster import MiniCluster, free_port_outside_rays_own
from tests.support.flaky_s3 import flaky_s3
from tests.support.monitoring_checks import GRAFANA_VARIABLES, MONITORING, expressions, panel_queries, rules

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
TITLES = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = rules((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
JOBS_S = 400.0


class MonitoredCluster(MiniCluster):
    """A head with two CPUs and a dashboard, in a folder of its own (RAY_TMPDIR)."""

    def _head_options(self) -> list[str]:
        ports = [f"--port={self.address.rpartition(':')[2]}", f"--dashboard-port={free_port_outside_rays_own()}"]
        return [*ports, "--num-cpus=2", "--include-dashboard=true", "--dashboard-agent-listen-port=0"]


class Prometheus:
    """Prometheus, started by the commands in the head of prometheus.yml, on another port and with a folder for its data."""

    def __init__(self, folder: Path, ray_tmpdir: Path) -> None:
        shutil.copytree(MONITORING, folder / "infra" / "monitoring")
        text = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
        (move,) = re.findall(r"^#   (sed .*)$", text, re.MULTILINE)
        (start,) = re.findall(r"^#   (prometheus .*?)  +without$", text, re.MULTILINE)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        start = f"exec {start.replace('127.0.0.1:9090', f'127.0.0.1:{port}')} --storage.tsdb.path={folder}/data"
        self.log, environment = folder / "prometheus.log", os.environ | {"RAY_TMPDIR": str(ray_tmpdir)}
        with self.log.open("w") as log:
            command = ["bash", "-c", f"{move}\n{start}"]
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self.began = time.time()

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(urllib.request.urlopen(url, timeout=20).read())["data"]

    def values(self, query: str) -> dict[str, list[float]]:
        """Return what a panel would draw since the beginning: labels -> values, without those that are not numbers."""
        found = self.ask("query_range", query=query, start=str(self.began), end=str(time.time()), step="5")["result"]
        series = {json.dumps(one["metric"], sort_keys=True): [float(value) for _, value in one["values"]] for one in found}
        numbers = {labels: [value for value in values if value == value] for labels, values in series.items()}
        return {labels: values for labels, values in numbers.items() if values}

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory, s3_endpoint, draw_shape, data_set) -> Iterator[tuple[Prometheus, str]]:
    """Prometheus, after an ingestion on a busy S3, one whose versions S3 refuses, one of dead links, and a training."""
    if shutil.which("prometheus") is None:
        pytest.skip("not installed: prometheus; apt-get install prometheus")
    from tests.conftest import S3_ENVIRONMENT, web_server

    folder = tmp_path_factory.mktemp("prometheus")
    with (
        pytest.MonkeyPatch.context() as patch,
        web_server() as web,
        flaky_s3(s3_endpoint, every_503=10, every_cut=1000) as busy,
        flaky_s3(s3_endpoint, every_503=1000, every_cut=1000, read_only=True, below="/manifests/") as refusing,
    ):
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_endpoint}).items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="scraped")
        urls = [web.put(f"/{n}.png", draw_shape("red", "disc", n)) if n % 3 else f"{web.address}/gone/{n}" for n in range(60)]
        table = folder / "t.csv"
        table.write_text("\n".join(["url,caption", *(f"{url},a disc" for url in urls), ""]))
        cluster = MonitoredCluster({"AWS_ENDPOINT_URL": busy.address, "RAY_health_check_initial_delay_ms": "0"})
        prometheus = Prometheus(folder, cluster.folder)
        try:
            ingest = ["jobs/ingest.py", f"ingest.input={table}", "ingest.partition_size_rows=20", "ingest.num_workers=1"]
            ingest += ["ingest.fetch.allow_addresses=[127.0.0.1/32]"]
            assert run(cluster, *ingest, "ingest.output=s3://scraped/pairs", log=folder / "ingest.log") == 0
            cluster.environment["AWS_ENDPOINT_URL"] = refusing.address
            assert run(cluster, *ingest, "ingest.output=s3://scraped/refused", log=folder / "refused.log") == EXIT_BAD_INPUT
            cluster.environment["AWS_ENDPOINT_URL"] = busy.address
            gone = folder / "gone.csv"
            gone.write_text("\n".join(["url,caption", *(f"{web.address}/gone/{n},a disc" for n in range(10)), ""]))
            dead = [*ingest, f"ingest.input={gone}", "ingest.output=s3://scraped/gone"]
            assert run(cluster, *dead, log=folder / "gone.log") == EXIT_NOT_MEANT
            train = ["jobs/train.py", "--config", "debug_cpu", "run.name=scraped", "run.dir=s3://scraped/runs"]
            train += ["data.uri=s3://scraped/pairs", f"evaluation.retrieval_uri={data_set}", "train.max_steps=40"]
            train += ["train.global_batch_size=8", "data.block_size_samples=8", "cluster.num_workers=2"]
            assert run(cluster, *train, log=folder / "train.log") == 0
            time.sleep(45)  # Ray reports every 10 s, Prometheus asks every 10 s and evaluates its rules every 30 s
            yield prometheus, "s3://scraped/pairs"
        finally:
            prometheus.close()
            cluster.close()


def run(cluster: MonitoredCluster, *arguments: str, log: Path) -> int:
    process = cluster.job(*arguments, log=log)
    try:
        return process.wait(JOBS_S)
    finally:
        process.kill()
        print(log.read_text()[-3000:])


@pytest.mark.parametrize("title", TITLES)
def test_a_panel_has_data(scraped, title):
    prometheus, _ = scraped
    for query in panel_queries(title, __range="10m", __rate_interval="2m"):
        assert prometheus.values(query), query


def test_the_panels_show_what_was_done(scraped):
    prometheus, data_set = scraped
    now = {title: panel_queries(title, __range="10m", __rate_interval="2m", data_set=data_set) for title in TITLES}

    def last(title: str) -> list[float]:
        return [values[-1] for values in prometheus.values(now[title][0]).values()]

    assert last("Versions added") == [1]
    assert last("Samples") == [40]
    assert last("Partitions left") == [0]
    assert last("Done") == [1]
    assert max(max(values) for values in prometheus.values(now["Success rate"][0]).values()) <= 1
    (retries,) = panel_queries("Retries", __range="10m", __rate_interval="2m")  # a run of a minute is too short for a rate
    assert all(0 <= value <= 1 for values in prometheus.values(retries).values() for value in values)
    assert max(max(values) for values in prometheus.values(retries).values()) > 0
    states = {json.loads(labels)["State"] for labels in prometheus.values(now["Actors"][0])}
    assert "ALIVE" in states
    assert not states & {"IDLE", "RUNNING_TASK"}, "the same actors, told by their own processes"


def test_the_variables_of_the_dashboard_have_values(scraped):
    prometheus, data_set = scraped
    assert data_set in prometheus.ask("label/data_set/values")
    assert "scraped" in prometheus.ask("label/run/values")


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_a_rule_has_data_to_judge(scraped, alert):
    prometheus, _ = scraped
    (rule,) = [one for one in ALERTS if one["alert"] == alert]
    judged = re.split(r" (?:>=|>|<) [\d.]+", rule["expr"])[0]  # without the threshold, and without an exception behind it
    assert prometheus.values(judged), judged
    held = [one for group in prometheus.ask("rules")["groups"] for one in group["rules"] if one["name"] == alert]
    assert [(one["health"], one.get("lastError", "")) for one in held] == [("ok", "")]


def test_a_request_that_s3_refuses_raises_an_alert_though_it_happens_once(scraped):
    prometheus, _ = scraped
    firing = [one["labels"] for one in prometheus.ask("alerts")["alerts"] if one["state"] == "firing"]
    refused = [labels for labels in firing if labels["alertname"] == "RayclipStorageFailures"]
    assert [labels["data_set"] for labels in refused] == ["s3://scraped/refused"]


def test_an_ingestion_that_did_not_do_what_was_meant_raises_an_alert(scraped):
    prometheus, _ = scraped
    firing = [one["labels"] for one in prometheus.ask("alerts")["alerts"] if one["state"] == "firing"]
    not_meant = [labels for labels in firing if labels["alertname"] == "RayclipIngestionNotMeant"]
    assert [labels["data_set"] for labels in not_meant] == ["s3://scraped/gone"]


def test_it_listens_on_loopback_only(scraped):
    prometheus, _ = scraped
    port = int(prometheus.address.rpartition(":")[2])
    sockets = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {address for _, address, _, state, *_ in sockets if state == "0A" and address.endswith(f":{port:04X}")}
    assert listening == {f"0100007F:{port:04X}"}


def test_every_expression_of_the_dashboard_is_asked_for():
    asked = [query for title in TITLES for query in panel_queries(title)]
    assert len(asked) == len(expressions(DASHBOARD))
    assert not any(f"${name}" in query for query in asked for name in GRAFANA_VARIABLES)

"""Dashboard, alert rules and scraping name what the code exports, and show all of it; planted errors are caught."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.deploy_checks import INFRA, PLACEHOLDER, ROOT
from tests.support.monitoring_checks import MONITORING, OURS, SERVICE_DISCOVERY, files, panel_queries, problems, rules

FILES = files()
TEXTS = {name: (MONITORING / name).read_text(encoding="utf-8") for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_a_monitoring_file_is_whole_and_asks_only_for_what_is_exported(name):
    assert problems(name, TEXTS[name]) == []


def test_a_metric_that_the_code_has_and_no_panel_shows_is_missed(monkeypatch):
    monkeypatch.setitem(OURS, "ray_rayclip_train_new", {"run"})
    assert problems("dashboard.json", TEXTS["dashboard.json"]) == ["ray_rayclip_train_new: no panel shows it"]


def test_there_is_an_alert_for_a_run_that_stands_waits_or_wastes_for_rows_that_fail_and_for_retries():
    alerted = {name for rule in rules(TEXTS["alerts.yaml"]) for name in re.findall(r"ray_\w+", rule["expr"])}
    assert alerted >= {
        "ray_rayclip_train_last_step_timestamp_seconds",
        "ray_rayclip_train_data_wait_ratio",
        "ray_rayclip_train_goodput_ratio",
        "ray_rayclip_ingest_rows_total",
        "ray_rayclip_ingest_not_meant_total",
        "ray_rayclip_storage_retries_total",
    }


PLANTED = [
    ("dashboard.json", "(ray_rayclip_train_loss{", "(ray_rayclip_train_los{", "ray_rayclip_train_los: nobody exports it"),
    ("dashboard.json", "ray_rayclip_ingest_rows_total{", "ray_rayclip_ingest_rows{", "ray_rayclip_ingest_rows: nobody"),
    (
        "dashboard.json",
        "(ray_rayclip_train_temperature{",
        "(ray_rayclip_train_loss{",
        "train_temperature: no panel",
    ),
    ("dashboard.json", "ray_node_disk_free", "ray_node_disk_fre", "ray_node_disk_fre: nobody"),
    ("dashboard.json", '{run=~\\"$run\\"}', '{run=~\\"$runs\\"}', "$runs is no variable"),
    ("dashboard.json", '{run=~\\"$run\\"}', '{runs=~\\"$run\\"}', "has no label runs"),
    ("dashboard.json", "by (run) (", "by (rnu) (", "a label rnu"),
    ("dashboard.json", "[$__rate_interval]", "[$__rate_intervall]", "no variable"),
    ("dashboard.json", "max by (run) (ray", "max by (run) ((ray", "parenthesis"),
    (
        "dashboard.json",
        "label_values(ray_rayclip_train_step, run)",
        "label_values(ray_rayclip_train_stop, run)",
        "exported by nobody",
    ),
    ("dashboard.json", '"id": 3,', '"id": 4,', "id 4: stands twice"),
    ("dashboard.json", '"gridPos": {"h": 8, "w": 8, "x": 8,', '"gridPos": {"h": 8, "w": 8, "x": 7,', "lies over"),
    ("dashboard.json", '"w": 8, "x": 16,', '"w": 9, "x": 16,', "beyond the grid"),
    ("dashboard.json", '"uid": "${datasource}"},\n      "gridPos"', '"uid": "mine"},\n      "gridPos"', "another source"),
    ("dashboard.json", '"refId": "B"', '"refId": "A"', "one refId"),
    ("dashboard.json", '"schemaVersion": 39,', '"schemaVersion": 39', "JSONDecodeError"),
    ("alerts.yaml", "ray_rayclip_train_goodput_ratio", "ray_rayclip_train_goodput", "nobody exports it"),
    ("alerts.yaml", "for: 5m", "for: five minutes", "ValueError"),
    ("alerts.yaml", "for: 1h", "fro: 1h", "fro is no key here"),
    ("alerts.yaml", "severity: critical", "severity: dreadful", "severity"),
    ("alerts.yaml", "{{ $labels.run }}: no step", "{{ $labels.rank }}: no step", "a label rank"),
    ("alerts.yaml", "groups:\n", "groups\n", "ScannerError"),
    ("alerts.yaml", "RayclipGoodputLow", "RayclipDataWaitHigh", "stands twice"),
    ("alerts.yaml", "unless on (data_set)", "unless on (dataset)", "a label dataset"),
    ("prometheus.yml", "alerts.yaml", "alert.yaml", "there is no alert.yaml"),
    ("prometheus.yml", "prom_metrics_service", "prometheus_service", "not the file that Ray writes"),
    ("prometheus.yml", " --web.listen-address=127.0.0.1:9090", "", "more than loopback"),
    ("prometheus.yml", "scrape_interval: 10s", "scrape_interval: often", "ValueError"),
    ("prometheus.yml", "  scrape_interval", " \tscrape_interval", "ScannerError"),
    ("compose.yaml", "./alerts.yaml", "./alert.yaml", "there is no ./alert.yaml"),
    ("compose.yaml", "prom/prometheus:v3.5.0", "prom/prometheus:latest", "has no version"),
    ("compose.yaml", "GF_SERVER_HTTP_ADDR: 127.0.0.1", "GF_SERVER_HTTP_ADDR: 0.0.0.0", "more than loopback"),
    ("compose.yaml", "source: dashboards", "source: dashboard", "KeyError"),
    ("compose.yaml", "network_mode", "networkmode", "networkmode is no key"),
    ("podmonitor.yaml", "port: metrics", "port: metric", "the head has none"),
    ("podmonitor.yaml", "podTargetLabels:", "podTargetLabel:", "podTargetLabel is no key"),
    ("podmonitor.yaml", "is-ray-node", "is-a-ray-node", "label that KubeRay gives"),
    ("podmonitor.yaml", "kind: PodMonitor", "kind: PodMonitors", "is no PodMonitor"),
    ("podmonitor.yaml", "namespace: rayclip", "namespace: default", "not that of the cluster"),
    ("prometheusrule.yaml", "kind: PrometheusRule", "kind: PrometheusRules", "is no PrometheusRule"),
    ("prometheusrule.yaml", "release:", "releases:", "kube-prometheus-stack reads it"),
    ("prometheusrule.yaml", "spec:\n", "specs:\n", "KeyError: 'spec'"),
]


@pytest.mark.parametrize(("name", "good", "bad", "says"), PLANTED, ids=lambda value: value.strip()[:40])
def test_a_planted_error_is_caught(name, good, bad, says):
    assert good in TEXTS[name]
    assert says.lower() in "\n".join(problems(name, TEXTS[name].replace(good, bad, 1))).lower()


def test_an_error_is_planted_in_every_monitoring_file():
    assert {name for name, *_ in PLANTED} == set(FILES)


def evaluate(tests: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("Prometheus' promtool is not installed; the expressions were parsed, not evaluated")
    result = subprocess.run([promtool, "test", "rules", str(tests)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_alerts_fire_for_what_they_are_named_after_and_for_nothing_else():
    evaluate(ROOT / "tests" / "support" / "alerts_test.yaml")


SHOWN = {
    "versions of jobs that commit once": (
        "Versions added",
        {
            'ingest_commits_total{data_set="d",WorkerId="1"}': "1x200",  # before the time shown: not counted
            'ingest_commits_total{data_set="d",WorkerId="2"}': "_x100 1x100",
            'ingest_commits_total{data_set="d",WorkerId="3"}': "1x100 3x100",
        },
        {'{data_set="d"}': 3},
    ),
    "a job of one partition whose rows all fail": (
        "Success rate",
        {'ingest_rows_total{data_set="d",reason="timeout"}': "_x198 500x5"},
        {'{data_set="d"}': 0},
    ),
    "a job that succeeds, and one of which 3 in 4 rows fail": (
        "Success rate",
        {
            'ingest_rows_total{data_set="d",reason="success"}': "0+10x200",
            'ingest_rows_total{data_set="e",reason="success"}': "0+10x200",
            'ingest_rows_total{data_set="e",reason="http_404"}': "0+30x200",
        },
        {'{data_set="d"}': 1, '{data_set="e"}': 0.25},
    ),
    "retries while S3 is away, for a time, and never": (
        "Retries",
        {
            'storage_requests_total{run="away"}': "7x200",
            'storage_retries_total{run="away"}': "0+5x200",
            'storage_retries_total{run="never there"}': "0+5x200",
            'storage_requests_total{run="busy"}': "0+3x200",
            'storage_retries_total{run="busy"}': "0+1x200",
            'storage_requests_total{run="quick"}': "0+3x200",
        },
        {'{run="away"}': 1, '{run="never there"}': 1, '{run="busy"}': 0.25, '{run="quick"}': 0},
    ),
    "failures, and a run without any": (
        "Failures",
        {
            'storage_requests_total{run="a"}': "0+60x200",
            'storage_failures_total{run="a"}': "0+60x200",
            'storage_requests_total{run="b"}': "0+60x200",
        },
        {'{run="a"}': 1, '{run="b"}': 0},
    ),
    "actors, of which Ray's head and their own processes tell": (
        "Actors",
        {
            'actors{State="ALIVE",Source="gcs"}': "4x200",
            'actors{State="DEAD",Source="gcs"}': "9x200",
            'actors{State="IDLE",Source="executor"}': "3x200",
            'actors{State="RUNNING_TASK",Source="executor"}': "1x200",
        },
        {'{State="ALIVE"}': 4},
    ),
}
"""What happens -> the panel; series without their prefix, a value a minute; what the panel shows at the 200th minute."""


@pytest.mark.parametrize("happens", SHOWN)
def test_a_panel_shows(happens, tmp_path):
    title, series, shown = SHOWN[happens]
    (query,) = panel_queries(title)
    prefixed = {
        f"ray_{name}" if name.startswith("actors") else f"ray_rayclip_{name}": values for name, values in series.items()
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in prefixed.items()],
        "promql_expr_test": [
            {
                "expr": f"round({query}, 0.001)",
                "eval_time": "200m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in shown.items()],
            }
        ],
    }
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    evaluate(tmp_path / "panel.yaml")


def test_the_line_for_another_folder_of_rays_leads_prometheus_and_its_container_to_rays_list(tmp_path):
    (line,) = re.findall(r"^#   (sed .*)$", TEXTS["prometheus.yml"], re.MULTILINE)
    folder = tmp_path / "infra" / "monitoring"
    folder.mkdir(parents=True)
    for name in ("prometheus.yml", "compose.yaml"):
        (folder / name).write_text(TEXTS[name])
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env={"RAY_TMPDIR": "/big/tmp", "PATH": "/usr/bin:/bin"}, check=True)
    (scrape,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"] == [SERVICE_DISCOVERY.replace("/tmp/ray/", "/big/tmp/ray/")]
    mounts = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["prometheus"]["volumes"]
    assert "/big/tmp/ray:/big/tmp/ray:ro" in mounts


def test_the_file_in_which_ray_lists_its_nodes_has_the_name_that_ray_gives_it():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}" == SERVICE_DISCOVERY


def test_every_placeholder_is_explained():
    explained = set(PLACEHOLDER.findall((INFRA / "README.md").read_text()))
    assert {word for text in TEXTS.values() for word in PLACEHOLDER.findall(text)} <= explained

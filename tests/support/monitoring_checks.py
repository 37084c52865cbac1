"""Validators of the files in infra/monitoring/.

In: a file's name within infra/monitoring/ and its text, so that a test can plant an error. Out: one line per problem; none for
a good file. Every metric that is shown must be exported by the code, or by Ray on a node's metrics port, as a test has seen.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from pipeline.metrics import INGESTION, STORAGE
from tests.support.deploy_checks import INFRA, filled_in, load_all
from training.metrics import TRAINING

MONITORING = INFRA / "monitoring"
SERVICE_DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
GRAFANA_WIDTH = 24
GRAFANA_VARIABLES = {"__rate_interval": "5m", "__range": "3h"}
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""

OURS = {
    f"ray_{one.name}{'_total' if one.kind == 'counter' else ''}": set(one.labels)
    for table in (TRAINING, INGESTION, STORAGE)
    for one in table.values()
}
"""Exported name -> labels."""
RAYS = {
    "ray_actors": {"State", "Source"},
    "ray_cluster_active_nodes": set(),
    "ray_node_cpu_utilization": {"ip", "RayNodeType"},
    "ray_node_disk_free": {"ip", "RayNodeType"},
    "ray_node_mem_total": {"ip", "RayNodeType"},
    "ray_node_mem_used": {"ip", "RayNodeType"},
    "ray_node_network_receive_speed": {"ip", "RayNodeType"},
    "ray_node_network_send_speed": {"ip", "RayNodeType"},
    "ray_object_store_available_memory": {"NodeAddress"},
    "ray_object_store_used_memory": {"NodeAddress"},
    "ray_resources": {"Name", "State"},
}
"""Exported name -> labels of Ray's own metrics, as seen by tests/system/test_monitoring.py. Those that Ray sets only once are
missing: they expire after 20 s (docs/decisions/0013-metrics.md)."""


def files() -> list[str]:
    return sorted(path.name for path in MONITORING.iterdir())


def problems(name: str, text: str) -> list[str]:
    check = {
        "dashboard.json": dashboard_problems,
        "alerts.yaml": alert_problems,
        "prometheus.yml": prometheus_problems,
        "compose.yaml": compose_problems,
        "podmonitor.yaml": pod_monitor_problems,
        "prometheusrule.yaml": rule_head_problems,
    }[name]
    try:
        return list(check(filled_in(text)))
    except (yaml.YAMLError, json.JSONDecodeError, LookupError, TypeError, AttributeError, ValueError) as error:
        return [f"{type(error).__name__}: {' '.join(str(error).split())}"]  # a part is missing or has the wrong type


# --- PromQL


def expression_problems(expression: str) -> Iterator[str]:
    """Syntax errors, names that nothing exports, labels that no metric of the expression has."""
    known = OURS | RAYS
    try:
        nodes = _nodes(expression)
    except ValueError as error:
        yield f"{expression}: {error}"
        return
    selectors = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    for selector in selectors:
        if selector.name not in known:
            yield f"{selector.name}: nobody exports it"
        for matcher in selector.matchers.matchers:
            if matcher.name not in known.get(selector.name, set()) | SCRAPED:
                yield f"{selector.name}: has no label {matcher.name}"
    labels = SCRAPED.union(*(known.get(selector.name, set()) for selector in selectors))
    for node in nodes:
        modifiers = []
        if isinstance(node, promql_parser.AggregateExpr):
            modifiers = [node.modifier]
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            modifiers = [node.modifier.matching]
        for label in {label for modifier in modifiers if modifier for label in modifier.labels} - labels:
            yield f"{expression}: nothing in it has a label {label}"
    if not selectors:
        yield f"{expression}: asks for no metric"


def _nodes(expression: str) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found


# --- Grafana


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Expressions of the panels."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def panel_queries(title: str, **variables: str) -> list[str]:
    """Return a panel's expressions with Grafana's variables filled in: all runs and data sets unless told."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    (panel,) = [one for one in dashboard["panels"] if one["title"] == title]
    values = GRAFANA_VARIABLES | {"run": ".*", "data_set": ".*"} | variables
    return [re.sub(r"\$(\w+)", lambda name: values[name.group(1)], target["expr"]) for target in panel.get("targets", [])]


def dashboard_problems(text: str) -> Iterator[str]:
    dashboard = json.loads(text)
    yield from _layout_problems(dashboard["panels"])
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    for one in variables.values():
        if one["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["query"]["query"]).groups()
            if label not in OURS.get(metric, set()):
                yield f"variable {one['name']}: {metric} with a label {label} is exported by nobody"
    for expression in expressions(dashboard):
        for used in re.findall(r"\$\{?(\w+)", expression):
            if used not in variables and used not in GRAFANA_VARIABLES:
                yield f"{expression}: ${used} is no variable of the dashboard"
        for name, value in GRAFANA_VARIABLES.items():
            expression = expression.replace(f"${name}", value)
        yield from expression_problems(expression)
    for panel in dashboard["panels"]:
        for source in (panel, *panel.get("targets", [])):
            if panel["type"] != "row" and source["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"{panel['title']}: asks another source than the one that is chosen"
    shown = set(re.findall(r"ray_\w+", " ".join(expressions(dashboard))))
    yield from (f"{name}: no panel shows it" for name in sorted(set(OURS | RAYS) - shown))
    unused = set(variables) - set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    yield from (f"variable {name}: no panel uses it" for name in sorted(unused))


def _layout_problems(panels: list[dict[str, Any]]) -> Iterator[str]:
    numbers = [panel["id"] for panel in panels]
    yield from (f"id {number}: stands twice" for number in sorted({one for one in numbers if numbers.count(one) > 1}))
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place, title = panel["gridPos"], panel["title"]
        if place["x"] + place["w"] > GRAFANA_WIDTH:
            yield f"{title}: reaches beyond the grid's {GRAFANA_WIDTH} columns"
        cells = [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
        yield from sorted({f"{title}: lies over {taken[cell]}" for cell in cells if cell in taken})
        taken |= dict.fromkeys(cells, title)
        if panel["type"] != "row" and not panel["targets"]:
            yield f"{title}: asks for nothing"
        letters = [target["refId"] for target in panel.get("targets", [])]
        if len(set(letters)) < len(letters):
            yield f"{title}: two of its queries have one refId"


# --- Prometheus


def rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in load_all(text)[0]["groups"] for rule in group["rules"]]


def alert_problems(text: str) -> Iterator[str]:
    """Keys and types that Prometheus would refuse, and annotations that a reader would miss."""
    (content,) = load_all(text)
    groups = content["groups"]
    yield from _unknown("file", content, {"groups"})
    titles = [group["name"] for group in groups] + [rule["alert"] for rule in rules(text)]
    yield from (f"{title}: stands twice" for title in sorted({one for one in titles if titles.count(one) > 1}))
    for group in groups:
        yield from _unknown(group["name"], group, {"name", "interval", "limit", "rules", "labels"})
    for rule in rules(text):
        alert = rule["alert"]
        yield from _unknown(alert, rule, {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"})
        if not isinstance(rule["expr"], str):
            yield f"{alert}: expr is no text"
        if "for" in rule:
            promql_parser.parse_duration(rule["for"])
        if rule["labels"]["severity"] not in ("warning", "critical"):
            yield f"{alert}: severity is neither warning nor critical"
        yield from (f"{alert}: {problem}" for problem in expression_problems(rule["expr"]))
        shown = set(re.findall(r"\$labels\.(\w+)", "".join(rule["annotations"].values())))
        kept = {label for words in re.findall(r"\b(?:by|on) \(([\w, ]*)\)", rule["expr"]) for label in words.split(", ")}
        yield from (f"{alert}: its annotations show a label {label} that it has not" for label in sorted(shown - kept))
        if "summary" not in rule["annotations"] or "description" not in rule["annotations"]:
            yield f"{alert}: says not what is wrong, or not what to do"


def prometheus_problems(text: str) -> Iterator[str]:
    for command in re.findall(r"^#   (prometheus .*)$", text, re.MULTILINE):
        if "--web.listen-address=127.0.0.1:" not in command:
            yield f"{command.split()[0]}: listens on more than loopback"
    (content,) = load_all(text)
    yield from _unknown("file", content, {"global", "rule_files", "scrape_configs"})
    yield from _unknown("global", content["global"], {"scrape_interval", "evaluation_interval"})
    for interval in content["global"].values():
        promql_parser.parse_duration(interval)
    yield from (f"rule_files: there is no {name}" for name in content["rule_files"] if not (MONITORING / name).is_file())
    (scrape,) = content["scrape_configs"]
    yield from _unknown("scrape_configs", scrape, {"job_name", "file_sd_configs"})
    (discovery,) = scrape["file_sd_configs"]
    if discovery["files"] != [SERVICE_DISCOVERY]:
        yield "file_sd_configs: is not the file that Ray writes"
    if promql_parser.parse_duration(discovery["refresh_interval"]).total_seconds() > 60:
        yield "refresh_interval: new nodes would be seen late"


def compose_problems(text: str) -> Iterator[str]:
    (content,) = load_all(text)
    yield from _unknown("file", content, {"name", "services", "volumes", "configs"})
    for name, service in content["services"].items():
        keys = {"image", "network_mode", "restart", "command", "environment", "volumes", "configs"}
        yield from _unknown(name, service, keys)
        if not re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]):
            yield f"{name}: image {service['image']} has no version"
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("./") and not (MONITORING / source).is_file():
                yield f"{name}: there is no {source}"
            if not source.startswith((".", "/")) and source not in content["volumes"]:
                yield f"{name}: there is no volume {source}"
        for config in service.get("configs", []):
            yaml.safe_load(content["configs"][config["source"]]["content"])
        words = [*service.get("command", []), *service.get("environment", {}).values()]
        if not any("127.0.0.1" in word for word in words):
            yield f"{name}: listens on more than loopback"


def pod_monitor_problems(text: str) -> Iterator[str]:
    """Keys that the operator's reference lacks; labels and ports that KubeRay's and our pods lack."""
    (monitor,) = load_all(text)
    yield from _operator_problems(monitor, "PodMonitor")
    yield from _unknown("spec", monitor["spec"], {"selector", "podTargetLabels", "podMetricsEndpoints"})
    if monitor["spec"]["selector"] != {"matchLabels": {"ray.io/is-ray-node": "yes"}}:
        yield "selector: is not the label that KubeRay gives to its pods"
    (head,) = _cluster()["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        yield from _unknown("podMetricsEndpoints", endpoint, {"port", "interval"})
        promql_parser.parse_duration(endpoint["interval"])
        if endpoint["port"] not in [port["name"] for port in head["ports"]]:
            yield f"port {endpoint['port']}: the head has none of that name"


def rule_head_problems(text: str) -> Iterator[str]:
    """Problems of the manifest that it forms together with the alert rules."""
    rules_behind = "".join(f"  {line}" for line in (MONITORING / "alerts.yaml").read_text().splitlines(keepends=True))
    (manifest,) = load_all(text + rules_behind)
    yield from _operator_problems(manifest, "PrometheusRule")
    if not manifest["spec"]["groups"]:
        yield "spec: holds no rules"


def _operator_problems(manifest: dict[str, Any], kind: str) -> Iterator[str]:
    if (manifest["apiVersion"], manifest["kind"]) != ("monitoring.coreos.com/v1", kind):
        yield f"{manifest['apiVersion']} {manifest['kind']}: is no {kind}"
    yield from _unknown("file", manifest, {"apiVersion", "kind", "metadata", "spec"})
    yield from _unknown("metadata", manifest["metadata"], {"name", "namespace", "labels"})
    if manifest["metadata"]["namespace"] != _cluster()["metadata"]["namespace"]:
        yield "namespace: is not that of the cluster"
    if "release" not in manifest["metadata"]["labels"]:
        yield "labels: without `release` no Prometheus of kube-prometheus-stack reads it"


def _cluster() -> dict[str, Any]:
    return load_all((INFRA / "kuberay" / "raycluster.yaml").read_text())[0]


def _unknown(where: str, node: dict[str, Any], keys: set[str]) -> Iterator[str]:
    yield from (f"{where}: {key} is no key here" for key in sorted(set(node) - keys))

"""The pods that KubeRay's operator makes of a manifest: their commands, environment and probes.

In: a cluster's, a job's or a cron job's spec, as parsed from YAML. Out: pod specs for tests/support/pods.py. Source: the
operator's pod.go and job.go (v1.7), for Ray 2.53 and later, which answer health checks over HTTP.
"""

from __future__ import annotations

import copy
import math
import shlex
from typing import Any

from tests.support.kuberay_rules import quantity

GCS_PORT, DASHBOARD_PORT, AGENT_PORT, METRICS_PORT = 6379, 8265, 52365, 8080
HEALTH = {"httpGet": {"path": "/api/healthz", "port": AGENT_PORT}, "periodSeconds": 5}
OLD_HEALTH = f"wget -T 2 -q -O- http://localhost:{AGENT_PORT}/api/local_raylet_healthz | grep success"
"""The probe of a Ray without /api/healthz, for which infra/docker/Dockerfile installs wget."""
OLD_HEALTH_OF_A_HEAD = f"{OLD_HEALTH} && wget -T 10 -q -O- http://localhost:{DASHBOARD_PORT}/api/gcs_healthz | grep success"
WAIT_FOR_GCS = "until ray health-check --address {address} > /dev/null 2>&1; do echo waiting for the head; sleep 5; done"
WAIT_FOR_DASHBOARD = (
    """until python -c "import urllib.request as r; r.urlopen('{address}/api/gcs_healthz', timeout=5)" """
    "> /dev/null 2>&1; do echo waiting for the dashboard; sleep 2; done"
)

Pod = dict[str, Any]


def head_service(cluster: str) -> str:
    """Return the name under which all pods of a namespace reach a cluster's head."""
    return f"{cluster}-head-svc"


def head_pod(cluster: str, spec: dict[str, Any]) -> Pod:
    """Return the head's pod. Its second container is the autoscaler, if the spec has one."""
    group = spec["headGroupSpec"]
    pod, options = copy.deepcopy(group["template"]["spec"]), dict(group.get("rayStartParams", {}))
    options.setdefault("dashboard-host", "0.0.0.0")
    container = pod["containers"][0]
    environment = {"RAY_ADDRESS": f"127.0.0.1:{GCS_PORT}"}
    if spec.get("enableInTreeAutoscaling"):
        options["no-monitor"] = "true"
        environment["RAY_enable_autoscaler_v2"] = "true"
        pod["restartPolicy"] = "Never"
        pod["containers"].append({"name": "autoscaler", "image": container["image"]})
        volume = {"name": "ray-logs", "mountPath": "/tmp/ray"}
        container["volumeMounts"] = [*container.get("volumeMounts", []), volume]
        pod["volumes"] = [*pod.get("volumes", []), {"name": "ray-logs", "emptyDir": {}}]
    _make_a_ray_node(cluster, "headgroup", spec, container, ["--head"], options, environment, timeout_s=5)
    return pod


def worker_pod(cluster: str, spec: dict[str, Any], group_name: str) -> Pod:
    """Return the pod of one worker of a group; its init container waits for the head."""
    (group,) = [group for group in spec["workerGroupSpecs"] if group["groupName"] == group_name]
    pod, options = copy.deepcopy(group["template"]["spec"]), dict(group.get("rayStartParams", {}))
    address = f"{head_service(cluster)}.rayclip.svc.cluster.local:{GCS_PORT}"
    options.setdefault("address", address)
    if spec.get("enableInTreeAutoscaling"):
        pod["restartPolicy"] = "Never"
    container = pod["containers"][0]
    _make_a_ray_node(cluster, group_name, spec, container, [], options, {"RAY_ADDRESS": address}, timeout_s=2)
    wait = {"name": "wait-gcs-ready", "command": _bash(), "args": [WAIT_FOR_GCS.format(address=address)]}
    kept = {key: container[key] for key in ("image", "env", "volumeMounts", "securityContext") if key in container}
    pod["initContainers"] = [*pod.get("initContainers", []), {**kept, **wait}]
    return pod


def submitter_pod(cluster: str, job: dict[str, Any], submission: str) -> Pod:
    """Return the pod that submits a RayJob's entrypoint, unless a pod before it has, and follows its log."""
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    default = {"restartPolicy": "Never", "containers": [{"name": "submitter", "image": head["containers"][0]["image"]}]}
    pod = copy.deepcopy(job.get("submitterPodTemplate", {}).get("spec", default))
    address = f"http://{head_service(cluster)}.rayclip.svc.cluster.local:{DASHBOARD_PORT}"
    ray_job, to = "ray job", f"--address {address}"
    submit = f"{ray_job} submit {to} --no-wait --submission-id {submission} -- {job['entrypoint'].strip()}"
    container = pod["containers"][0]
    if not container.get("command"):
        container["command"] = _bash("-ce")
        container["args"] = [
            f"{WAIT_FOR_DASHBOARD.format(address=address)} ; "
            f"if ! {ray_job} status {to} {submission} >/dev/null 2>&1 ; then {submit} ; fi ; "
            f"{ray_job} logs {to} --follow {submission}"
        ]
    _add(container, {"PYTHONUNBUFFERED": "1", "RAY_DASHBOARD_ADDRESS": address, "RAY_JOB_SUBMISSION_ID": submission})
    _add_token(container, cluster, job["rayClusterSpec"])
    return pod


def pod_failure_action(job: dict[str, Any], code: int, earlier_failures: int) -> str:
    """Return what Kubernetes does with a batch Job after a pod ended: Complete, Retry, or Fail.

    Args:
        job: its spec.
        code: the exit code of the pod's only container.
        earlier_failures: pods of this job that failed before.
    """
    if code == 0:
        return "Complete"
    for rule in job.get("podFailurePolicy", {}).get("rules", []):
        codes = rule.get("onExitCodes", {})
        listed = code in codes.get("values", [])
        if codes and listed == (codes["operator"] == "In"):
            if rule["action"] == "FailJob":
                return "Fail"
            if rule["action"] == "Ignore":
                return "Retry"
            break  # Count
    return "Retry" if earlier_failures < job.get("backoffLimit", 6) else "Fail"


def _make_a_ray_node(
    cluster: str,
    group: str,
    spec: dict[str, Any],
    container: dict[str, Any],
    kind: list[str],
    options: dict[str, str],
    environment: dict[str, str],
    timeout_s: int,
) -> None:
    """Give a pod's first container the operator's command, variables and probes."""
    resources = container.get("resources", {})
    limits = resources.get("limits", {})
    if "cpu" in {**resources.get("requests", {}), **limits}:
        options.setdefault("num-cpus", str(math.ceil(quantity(limits.get("cpu") or resources["requests"]["cpu"]))))
    if "memory" in limits:
        options.setdefault("memory", str(int(quantity(limits["memory"]))))
    for name, number in limits.items():
        if name.endswith("gpu"):
            options.setdefault("num-gpus", str(number))
    options = {
        "metrics-export-port": str(METRICS_PORT),
        "dashboard-agent-listen-port": str(AGENT_PORT),
        **options,
        "block": "true",
    }
    flags = [f"--{name}" if value.lower() == "true" else f"--{name}={value}" for name, value in sorted(options.items())]
    start = " ".join(["ray start", *kind, *flags])
    before = shlex.join([*container.get("command", []), *container.get("args", [])])
    container["command"] = _bash()
    container["args"] = [f"{before} && " * bool(before) + f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"]
    environment |= {"RAY_CLUSTER_NAME": cluster, "RAY_NODE_TYPE_NAME": group, "RAY_PORT": str(GCS_PORT)}
    _add(container, {**environment, "KUBERAY_GEN_RAY_START_CMD": start, "RAY_USAGE_STATS_KUBERAY_IN_USE": "1"})
    _add_token(container, cluster, spec)
    probe = {**HEALTH, "timeoutSeconds": timeout_s}
    container.setdefault("readinessProbe", {**probe, "initialDelaySeconds": 10, "failureThreshold": 10})
    container.setdefault("livenessProbe", {**probe, "initialDelaySeconds": 30, "failureThreshold": 120})


def _add_token(container: dict[str, Any], cluster: str, spec: dict[str, Any]) -> None:
    if spec.get("authOptions", {}).get("mode") == "token":
        _add(container, {"RAY_AUTH_MODE": "token"})
        secret = {"secretKeyRef": {"name": spec["authOptions"].get("secretName", cluster), "key": "auth_token"}}
        container["env"].append({"name": "RAY_AUTH_TOKEN", "valueFrom": secret})


def _add(container: dict[str, Any], variables: dict[str, str]) -> None:
    """Add variables that the container does not state itself."""
    stated = container.setdefault("env", [])
    names = {variable["name"] for variable in stated}
    stated += [{"name": name, "value": value} for name, value in variables.items() if name not in names]


def _bash(options: str = "-c") -> list[str]:
    return ["/bin/bash", options, "--"]

"""Rules of KubeRay's operator that its schema does not express, and this project's own rules for its manifests.

In: a manifest as parsed from YAML. Out: one line for every rule that it breaks. Sources: the operator's validation.go (v1.7)
and Kueue's page on RayJobs.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from jobs.cli.command_line import CLUSTER_SETTINGS, EXIT_BAD_INPUT, EXIT_NOT_MEANT, EXIT_STOPPED
from jobs.cli.stopping import EXIT_INTERRUPTED

FINAL = [EXIT_BAD_INPUT, EXIT_NOT_MEANT, EXIT_INTERRUPTED, EXIT_STOPPED]
"""Exit codes after which a job is not retried."""
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
CRON_FIELD = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*")
LONGEST_NAME = {"RayCluster": 50, "RayJob": 47, "RayCronJob": 36, "CronJob": 52}
QUANTITY = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
DEFAULT_DRAIN_S = 30
CUT_TO_SHM_BYTES = 10e9
"""Ray caps the size of its object store at what /dev/shm allows."""
DEFAULT_GRACE_S = 30
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def broken_rules(manifest: dict[str, Any]) -> Iterator[str]:
    """Every rule that a manifest of any kind breaks."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    name = manifest["metadata"]["name"]
    if not DNS_1035.fullmatch(name) or len(name) > LONGEST_NAME.get(kind, 63):
        yield f"metadata.name={name}: must be a DNS label of at most {LONGEST_NAME.get(kind, 63)} characters"
    if kind == "RayCluster":
        yield from cluster_rules(spec)
    elif kind == "RayJob":
        yield from job_rules(spec)
        if QUEUE_LABEL in manifest["metadata"].get("labels", {}):
            yield from kueue_rules(spec)
    elif kind in ("RayCronJob", "CronJob"):
        fields = spec["schedule"].split()
        if len(fields) != 5 or not all(CRON_FIELD.fullmatch(field) for field in fields):
            yield f"spec.schedule={spec['schedule']}: must be five fields of cron"
        if kind == "RayCronJob":
            yield from job_rules(spec["jobTemplate"])
        else:
            yield from batch_job_rules(spec["jobTemplate"]["spec"])
    elif kind == "PodDisruptionBudget" and ("maxUnavailable" in spec or not isinstance(spec["minAvailable"], int)):
        yield "a disruption budget of pods that no Deployment owns has minAvailable, as a whole number"


def batch_job_rules(spec: dict[str, Any]) -> Iterator[str]:
    """Kubernetes' rules for a Job's podFailurePolicy, then ours for a job whose pod submits and waits."""
    pod = spec["template"]["spec"]
    names = {container["name"] for container in pod["containers"]}
    rules = [rule for rule in spec.get("podFailurePolicy", {}).get("rules", []) if "onExitCodes" in rule]
    if rules and pod.get("restartPolicy") != "Never":
        yield f"restartPolicy={pod.get('restartPolicy')}: podFailurePolicy wants Never"
    for rule in rules:
        if rule["onExitCodes"].get("containerName", next(iter(names))) not in names:
            yield f"podFailurePolicy: there is no container {rule['onExitCodes']['containerName']}"
    ends = [rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob"]
    if not any(codes["operator"] == "In" and codes["values"] == FINAL for codes in ends):
        yield f"podFailurePolicy: exit codes {FINAL}, bad input, not meant and stopped, and no other, must fail the job at once"
    words = [word for container in pod["containers"] for word in container.get("command", [])]
    if not any(word.endswith("jobs/submit.py") for word in words):
        yield "command: only jobs/submit.py hands the job's exit code on"
    yield from pod_rules("jobTemplate", pod)


def cluster_rules(spec: dict[str, Any]) -> Iterator[str]:
    """The operator's rules for a RayClusterSpec, then ours."""
    groups = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec.get("workerGroupSpecs", [])}}
    scaled, options = spec.get("enableInTreeAutoscaling", False), spec.get("autoscalerOptions", {})
    for name, group in groups.items():
        pod, start = group["template"]["spec"], group.get("rayStartParams", {})
        if {"num-cpus", "num-gpus", "memory", "resources"} & set(start) and group.get("resources"):
            yield f"{name}: resources stand in rayStartParams too; keep one"
        if "labels" in start:
            yield f"{name}: labels in rayStartParams are refused; use the group's labels"
        if scaled and options.get("version") == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy={pod['restartPolicy']}: autoscaler v2 wants Never"
        if scaled and group.get("suspend"):
            yield f"{name}: a group cannot be suspended under the autoscaler"
        yield from pod_rules(name, pod)
        yield from ray_pod_rules(name, pod)
    head = variables(spec["headGroupSpec"]["template"]["spec"]["containers"][0])
    if "RAY_enable_autoscaler_v2" in head and (not scaled or "version" in options):
        yield "RAY_enable_autoscaler_v2: autoscalerOptions.version says it, and only with the autoscaler on"
    if "RAY_REDIS_ADDRESS" in head and "gcsFaultToleranceOptions" not in spec:
        yield "RAY_REDIS_ADDRESS: is set without gcsFaultToleranceOptions"
    version = tuple(int(part) for part in spec.get("rayVersion", "0.0").split(".")[:2])
    if spec.get("authOptions", {}).get("mode") != "token" or version < (2, 52):
        yield "authOptions.mode: must be token, with a rayVersion of 2.52 or later"
    if scaled and options.get("version") != "v2":
        yield f"autoscalerOptions.version={options.get('version')}: must be v2"
    if spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield "head: num-cpus must be 0; it does no work"
    missing = [key for key, value in CLUSTER_SETTINGS.items() if head.get(key) != value]
    missing += ["RAY_JOB_STOP_WAIT_TIME_S"] if int(head.get("RAY_JOB_STOP_WAIT_TIME_S", 0)) < 60 else []
    if missing:
        yield f"head: {', '.join(missing)}: must be set as docs/decisions/0007-resilience.md says"
    for group in spec.get("workerGroupSpecs", []):
        if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas={group.get('replicas', 0)} is not between minReplicas and maxReplicas"


def job_rules(spec: dict[str, Any]) -> Iterator[str]:
    """The operator's rules for a RayJobSpec and for the cluster in it."""
    ends, mode = spec.get("shutdownAfterJobFinishes", False), spec.get("submissionMode", "K8sJobMode")
    selector, rules = spec.get("clusterSelector"), spec.get("deletionStrategy", {}).get("deletionRules")
    refused = {
        "suspend needs shutdownAfterJobFinishes": spec.get("suspend") and not ends,
        "suspend is refused with clusterSelector": spec.get("suspend") and selector,
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": spec.get("ttlSecondsAfterFinished", 0) > 0 and not ends,
        "ttlSecondsAfterFinished is negative": spec.get("ttlSecondsAfterFinished", 0) < 0,
        "deletionRules exclude shutdownAfterJobFinishes": rules and ends,
        "one of rayClusterSpec and clusterSelector is needed": bool(spec.get("rayClusterSpec")) == bool(selector),
        "clusterSelector needs a ray.io/cluster": selector and not selector.get("ray.io/cluster"),
        "backoffLimit is refused with clusterSelector": spec.get("backoffLimit", 0) and selector,
        "backoffLimit is refused with InteractiveMode": spec.get("backoffLimit", 0) and mode == "InteractiveMode",
        "backoffLimit is negative": spec.get("backoffLimit", 0) < 0,
        "activeDeadlineSeconds must be positive": spec.get("activeDeadlineSeconds", 1) <= 0,
        "SidecarMode excludes submitterPodTemplate, submitterConfig and clusterSelector": mode == "SidecarMode"
        and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec),
        "runtimeEnvYAML must be a mapping": not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML") or "{}"), dict),
    }
    yield from (rule for rule, broken in refused.items() if broken)
    if "submitterPodTemplate" in spec:
        yield from pod_rules("submitter", spec["submitterPodTemplate"]["spec"])
    elif mode == "K8sJobMode":
        yield "submitterPodTemplate: must be stated; the operator's own pod has no securityContext"
    if "rayClusterSpec" in spec:
        yield from cluster_rules(spec["rayClusterSpec"])


def kueue_rules(spec: dict[str, Any]) -> Iterator[str]:
    cluster = spec["rayClusterSpec"]
    if not spec.get("shutdownAfterJobFinishes") or not spec.get("suspend"):
        yield "Kueue: the job begins suspended, and its cluster ends with it"
    if cluster.get("enableInTreeAutoscaling") or "autoscalerOptions" in cluster:
        yield "Kueue: what is reserved is fixed, so enableInTreeAutoscaling must be false"
    if any(not group["minReplicas"] == group["replicas"] == group["maxReplicas"] for group in cluster["workerGroupSpecs"]):
        yield "Kueue: all or none: replicas, minReplicas and maxReplicas must be one number"
    if len(cluster["workerGroupSpecs"]) > 7:
        yield "Kueue: at most 7 worker groups"


def pod_rules(name: str, pod: dict[str, Any]) -> Iterator[str]:
    """Our rules for every pod: it does not run as root, and it states its resources."""
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield f"{name}: securityContext must say runAsNonRoot, and runAsUser as a number"
    for container in pod["containers"]:
        resources = container.get("resources", {})
        if not all({"cpu", "memory"} <= set(resources.get(part, {})) for part in ("requests", "limits")):
            yield f"{name}: requests and limits must state cpu and memory"
        elif resources["requests"]["memory"] != resources["limits"]["memory"]:
            yield f"{name}: memory beyond its request may be taken away; request the limit"
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation must be false"


def ray_pod_rules(name: str, pod: dict[str, Any]) -> Iterator[str]:
    """Our rules for every pod that is a Ray node."""
    container = pod["containers"][0]
    drain_s = int(variables(container).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", DEFAULT_DRAIN_S))
    grace_s = pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
    if grace_s < drain_s + 10:
        yield f"{name}: terminationGracePeriodSeconds={grace_s}: must be 10 s longer than the drain of {drain_s} s"
    if grace_s > 120:
        yield f"{name}: terminationGracePeriodSeconds={grace_s}: a spot notice leaves 120 s"
    if "serviceAccountName" not in pod:
        yield f"{name}: serviceAccountName must be stated; the bucket is reached by it"
    mounted = [mount["name"] for mount in container.get("volumeMounts", []) if mount["mountPath"] == "/dev/shm"]
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    memory = [volumes[mount]["emptyDir"] for mount in mounted if "emptyDir" in volumes.get(mount, {})]
    if not memory or memory[0].get("medium") != "Memory" or "sizeLimit" not in memory[0]:
        yield f"{name}: /dev/shm must be an emptyDir in memory with a sizeLimit; a container has 64 MB else"
    elif quantity(memory[0]["sizeLimit"]) > quantity(container["resources"]["limits"]["memory"]) / 2:
        yield f"{name}: /dev/shm counts as the container's memory: at most half of it"
    elif quantity(memory[0]["sizeLimit"]) < min(0.3 * quantity(container["resources"]["limits"]["memory"]), CUT_TO_SHM_BYTES):
        yield f"{name}: /dev/shm holds less than the object store that Ray makes of 30% of the memory, which would go to disk"


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * QUANTITY[unit]

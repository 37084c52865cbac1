"""The operator's part in tests/support/kuberay_pods.py, and what the pods of infra/kuberay need beside their own file."""

import socket
import struct

import pytest
from ray.scripts.scripts import cli

from tests.support.deploy_checks import INFRA, filled_in, load_all
from tests.support.kuberay_pods import head_pod, pod_failure_action, submitter_pod, worker_pod
from tests.support.kuberay_rules import job_rules
from tests.support.name_server import answer
from tests.support.pods import DOCKERFILE, HOME, UID, WORKDIR, image_environment

MANIFESTS = [
    manifest
    for path in sorted((INFRA / "kuberay").glob("*.yaml"))
    for manifest in load_all(filled_in(path.read_text(encoding="utf-8")))
]
CLUSTERS = {
    "RayCluster": lambda spec: spec,
    "RayJob": lambda spec: spec["rayClusterSpec"],
    "RayCronJob": lambda spec: spec["jobTemplate"]["rayClusterSpec"],
}
OF_KIND = {manifest["kind"]: manifest for manifest in MANIFESTS}


def ray_pods():
    for kind, cluster_of in CLUSTERS.items():
        cluster = cluster_of(OF_KIND[kind]["spec"])
        yield f"{kind} head", head_pod("name", cluster)
        for group in cluster["workerGroupSpecs"]:
            yield f"{kind} {group['groupName']}", worker_pod("name", cluster, group["groupName"])


PODS = dict(ray_pods())


def test_the_operators_command_has_the_files_options_and_its_own():
    head, worker = PODS["RayJob head"]["containers"][0], PODS["RayJob train"]["containers"][0]
    assert head["command"] == worker["command"] == ["/bin/bash", "-c", "--"]
    assert head["args"] == [
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block --dashboard-agent-listen-port=52365"
        " --dashboard-host=0.0.0.0 --memory=17179869184 --metrics-export-port=8080 --no-monitor --num-cpus=0"
    ]
    assert worker["args"] == [
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start"
        " --address=name-head-svc.rayclip.svc.cluster.local:6379 --block --dashboard-agent-listen-port=52365"
        " --memory=171798691840 --metrics-export-port=8080 --num-cpus=44 --num-gpus=4"
    ]


@pytest.mark.parametrize("name", PODS)
def test_ray_has_every_option_of_the_operators_command(name):
    known = {option for parameter in cli.commands["start"].params for option in parameter.opts}
    words = PODS[name]["containers"][0]["args"][0].split("ray start ")[1].split()
    assert {word.partition("=")[0] for word in words} <= known


@pytest.mark.parametrize("name", PODS)
def test_a_pods_account_is_made_by_namespace_yaml(name):
    made = {manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "ServiceAccount"}
    assert PODS[name]["serviceAccountName"] in made


def test_the_cronjob_uses_the_token_and_the_head_of_the_cluster_that_stays():
    standing = OF_KIND["RayCluster"]["metadata"]["name"]
    token = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": standing, "key": "auth_token"}}}
    assert token in head_pod(standing, OF_KIND["RayCluster"]["spec"])["containers"][0]["env"]
    (container,) = OF_KIND["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert token in container["env"]
    assert f"http://{standing}-head-svc:8265" in container["command"]


def test_the_submitter_submits_once_however_often_its_pod_is_started():
    container = submitter_pod("name", OF_KIND["RayJob"]["spec"], "id")["containers"][0]
    (line,) = container["args"]
    assert "if ! ray job status" in line
    assert "--submission-id id -- python /opt/rayclip/jobs/train.py --config vit_b_32" in line
    assert {variable["name"] for variable in container["env"]} >= {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


def test_a_job_without_a_template_for_its_submitter_is_refused():
    spec = OF_KIND["RayCronJob"]["spec"]["jobTemplate"]
    assert not list(job_rules(spec))
    without = {key: value for key, value in spec.items() if key != "submitterPodTemplate"}
    assert [line.partition(":")[0] for line in job_rules(without)] == ["submitterPodTemplate"]
    assert "securityContext" not in submitter_pod("name", without, "id")


@pytest.mark.parametrize(
    ("code", "earlier_failures", "action"),
    [(0, 0, "Complete"), (1, 0, "Retry"), (1, 1, "Fail"), (2, 0, "Fail"), (3, 0, "Fail"), (143, 0, "Fail"), (137, 0, "Retry")],
)
def test_kubernetes_does_with_each_code_what_the_table_of_exit_codes_says(code, earlier_failures, action):
    job = OF_KIND["CronJob"]["spec"]["jobTemplate"]["spec"]
    assert pod_failure_action(job, code, earlier_failures) == action


def test_without_a_policy_every_code_is_tried_again():
    assert [pod_failure_action({"backoffLimit": 1}, code, 0) for code in (0, 1, 2)] == ["Complete", "Retry", "Retry"]


def test_a_pod_has_the_images_variables_and_user():
    found = image_environment()
    assert (found["HOME"], found["PYTHONDONTWRITEBYTECODE"]) == (f"/home/{HOME}", "1")
    assert (WORKDIR, UID) == ("/opt/rayclip", "1000")
    assert f"\nUSER {UID}\n" in DOCKERFILE


def test_the_name_server_knows_the_hosts_and_nothing_else():
    def asked(name: str, kind: int) -> bytes:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        return answer(struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1), "10.0.0.9 a.b c\n")

    found = asked("a.b", 1)
    assert found[:2] == struct.pack("!H", 7)
    assert socket.inet_ntoa(found[-4:]) == "10.0.0.9"
    assert struct.unpack_from("!HH", asked("a.b", 28), 4) == (1, 0), "no address of version 6, but the name is known"
    assert asked("a.b", 28)[3] & 15 == 0
    assert asked("e.org", 1)[3] & 15 == 3

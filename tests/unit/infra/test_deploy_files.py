"""Deploy files pass their tools' validators, name only what exists, and hold no secret; planted errors are caught."""

import re
import tomllib

import pytest

from jobs.cli.config import key_names, load_config, recipe_names
from jobs.cli.job_keys import JOBS
from tests.support.deploy_checks import (
    CRD_FILES,
    CRDS,
    INFRA,
    PLACEHOLDER,
    ROOT,
    commands,
    files,
    filled_in,
    load_all,
    problems,
)
from tests.support.walkthrough import steps

FILES = files()
TEXTS = {name: (INFRA / name).read_text(encoding="utf-8") for name in FILES}
PAGE = "docs/cluster.md"
TYPED = "\n".join(line for step in steps((ROOT / PAGE).read_text(encoding="utf-8")) for line in step.typed)
COMMANDS = [(name, line) for name in FILES for line in commands(TEXTS[name])] + [(PAGE, line) for line in commands(TYPED)]
OVERRIDE = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)=('[^']*'|\[[^\]]*\]|[^\s'\"`]+)")


@pytest.mark.parametrize("name", FILES)
def test_a_deploy_file_passes_every_validator_that_is_there(name):
    assert problems(name, TEXTS[name]) == []


def test_the_operators_own_schemas_have_been_asked():
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's resource definitions are not beside the repository ({CRDS}); only its rules were checked")
    kinds = {document["kind"] for name in FILES if name.startswith("kuberay/") for document in load_all(TEXTS[name])}
    assert set(CRD_FILES) <= kinds


SCHEMA = "needs the operator's schema"
PLANTED = [
    ("aws/cluster.yaml", "max_workers: 10", "max_worker: 10", "max_worker"),
    ("aws/cluster.yaml", "  cache_stopped_nodes: false", "  cache_stoped_nodes: false", "cache_stoped_nodes"),
    ("aws/cluster.yaml", "cluster_name: rayclip", "cluster_name: [rayclip]", "is not of type 'string'"),
    ("aws/cluster.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type"),
    (
        "aws/cluster.yaml",
        "InstanceMarketOptions: {MarketType: spot}",
        "InstanceMarketOption: {MarketType: spot}",
        "Unknown parameter",
    ),
    ("aws/cluster.yaml", "InstanceType: c7i.4xlarge", "InstanceType: [c7i.4xlarge]", "InstanceType"),
    ("aws/cluster.yaml", 'resources: {"CPU": 0}', 'resources: {"CPU": 8}', "the head does no work"),
    ("aws/cluster.yaml", "InstanceType: m7i.2xlarge", "InstanceMarketOptions: {MarketType: spot}", "not for spot"),
    ("aws/cluster.yaml", "HttpTokens: required", "HttpTokens: optional", "IMDSv2"),
    ("aws/cluster.yaml", "--env RAY_AUTH_MODE=token", "--env RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE"),
    ("aws/cluster.yaml", "max_workers: 2", "max_workers: 2\n    max_workers: 3", "stands twice"),
    ("aws/iam-policy.json", '"Action": "s3:GetObject"', '"Actions": "s3:GetObject"', "Actions"),
    ("aws/iam-policy.json", "s3:AbortMultipartUpload", "s3:AbortMultipartUplaod", "abortmultipartuplaod"),
    ("aws/iam-policy.json", '"s3:GetObject"', '"s3:*"', "list the actions"),
    ("aws/iam-head-policy.json", '"ec2:DescribeInstances"', '"ec2:TerminateInstances"', "over every resource"),
    ("aws/iam-trust.json", '"Allow"', '["Allow"]', "Allow"),
    ("aws/create_roles.sh", "done\n", "", "syntax error"),
    ("aws/create_roles.sh", '"$(dirname "$0")"', '$(dirname "$0")', "SC2046"),
    ("aws/spot_drain.py", "import json\n", "", "F821"),
    ("aws/spot_drain.py", "    while True:\n", "    while True\n", "SyntaxError"),
    ("docker/Dockerfile", "FROM ${BASE_IMAGE}", "FORM ${BASE_IMAGE}", "unexpected"),
    ("docker/Dockerfile", "ARG BASE_IMAGE=python:3.11.13-slim-bookworm\nFROM ${BASE_IMAGE}", "FROM python:latest", "DL3007"),
    ("docker/Dockerfile", "USER 1000", "USER root", "DL3002"),
    ("kuberay/namespace.yaml", "automountServiceAccountToken", "automountServiceAcountToken", "automountServiceAcountToken"),
    ("kuberay/namespace.yaml", "namespace: rayclip", "namespace: [rayclip]", "is not of type"),
    ("kuberay/raycluster.yaml", "minReplicas: 0", "minReplica: 0", SCHEMA),
    ("kuberay/raycluster.yaml", "  rayVersion:", "  rayVersions:", SCHEMA),
    ("kuberay/raycluster.yaml", "mode: token #", "mode: tokens #", SCHEMA),
    (
        "kuberay/raycluster.yaml",
        'requests: {cpu: "8", memory: 32Gi}',
        'requests: {cpu: ["8"], memory: 32Gi}',
        "requests.cpu: ['8']",
    ),
    ("kuberay/raycluster.yaml", "containerPort: 6379", "containerPorts: 6379", "containerPort"),
    ("kuberay/raycluster.yaml", "mode: token #", "mode: disabled #", "authOptions.mode"),
    ("kuberay/raycluster.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.51.0"', "authOptions.mode"),
    (
        "kuberay/raycluster.yaml",
        "serviceAccountName: rayclip-node\n",
        "serviceAccountName: rayclip-node\n          restartPolicy: Always\n",
        "Never",
    ),
    ("kuberay/raycluster.yaml", 'num-cpus: "0"', 'num-cpus: "0"\n      labels: a=b', "labels in rayStartParams"),
    (
        "kuberay/raycluster.yaml",
        "terminationGracePeriodSeconds: 110",
        "terminationGracePeriodSeconds: 80",
        "longer than the drain",
    ),
    ("kuberay/raycluster.yaml", "sizeLimit: 48Gi", "sizeLimit: 100Gi", "at most half"),
    ("kuberay/raycluster.yaml", "sizeLimit: 6Gi", "sizeLimit: 4Gi", "holds less than the object store"),
    (
        "kuberay/raycluster.yaml",
        'RAY_health_check_period_ms, value: "1000"',
        'RAY_health_check_period_ms, value: "3000"',
        "0007",
    ),
    ("kuberay/raycluster.yaml", "minAvailable: 1", "maxUnavailable: 0", "minAvailable"),
    ("kuberay/rayjob-train.yaml", "backoffLimit: 2 #", "backOffLimit: 2 #", SCHEMA),
    ("kuberay/rayjob-train.yaml", "entrypoint: >-\n", "entrypoint: []\n  metadata: >-\n", SCHEMA),
    (
        "kuberay/rayjob-train.yaml",
        "shutdownAfterJobFinishes: true",
        "shutdownAfterJobFinishes: false",
        "ttlSecondsAfterFinished needs",
    ),
    (
        "kuberay/rayjob-train.yaml",
        "submitterConfig:",
        "submissionMode: SidecarMode\n  submitterConfig:",
        "SidecarMode excludes",
    ),
    (
        "kuberay/rayjob-train.yaml",
        "  submitterConfig:",
        "  clusterSelector: {ray.io/cluster: a}\n  submitterConfig:",
        "clusterSelector",
    ),
    (
        "kuberay/rayjob-train.yaml",
        "# with Kueue: enableInTreeAutoscaling: false",
        "# with Kueue: enableInTreeAutoscaling: true",
        "Kueue: what",
    ),
    ("kuberay/rayjob-train.yaml", "# with Kueue: minReplicas: 2", "# with Kueue: minReplicas: 1", "all or none"),
    ("kuberay/raycronjob-ingest.yaml", "timeZone:", "timezone:", SCHEMA),
    ("kuberay/raycronjob-ingest.yaml", 'schedule: "15 3 * * *"', 'schedule: "15 3 * *"', "five fields"),
    ("kuberay/raycronjob-ingest.yaml", "name: rayclip-ingest", "name: Rayclip_Ingest", "DNS label"),
    ("kuberay/raycronjob-ingest.yaml", "activeDeadlineSeconds: 72000", "activeDeadlineSeconds: 0", "activeDeadlineSeconds"),
    ("kuberay/cronjob-ingest.yaml", "concurrencyPolicy:", "concurencyPolicy:", "concurencyPolicy"),
    ("kuberay/cronjob-ingest.yaml", 'schedule: "15 3 * * *"', 'schedule: ["15 3 * * *"]', "is not of type"),
    ("kuberay/cronjob-ingest.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
    ("kuberay/cronjob-ingest.yaml", "onExitCodes:", "onExitCode:", "onExitCode"),
    (
        "kuberay/cronjob-ingest.yaml",
        "values: [2, 3, 130, 143]",
        "values: [1, 2, 3, 130, 143]",
        "bad input, not meant and stopped",
    ),
    ("kuberay/cronjob-ingest.yaml", "values: [2, 3, 130, 143]", "values: [2, 130, 143]", "bad input, not meant and stopped"),
    ("kuberay/cronjob-ingest.yaml", "action: FailJob", "action: Ignore", "must fail the job at once"),
    ("kuberay/cronjob-ingest.yaml", "containerName: submit", "containerName: submitter", "there is no container submitter"),
    ("kuberay/cronjob-ingest.yaml", "restartPolicy: Never", "restartPolicy: OnFailure", "podFailurePolicy wants Never"),
    (
        "kuberay/cronjob-ingest.yaml",
        "[python, /opt/rayclip/jobs/submit.py, --address,",
        "[ray, job, submit, --address,",
        "hands the job's exit code on",
    ),
    ("slurm/train.sbatch", "'stop SIGTERM \"\"' TERM", '"stop $requested" TERM', "SC2064"),
    ("slurm/train.sbatch", '"$(cat "$driver_id")"', '$(cat "$driver_id")', "SC2046"),
    ("README.md", "`aws/cluster.yaml`", "`aws/clutser.yaml`", "clutser"),
]


@pytest.mark.parametrize(("name", "good", "bad", "says"), PLANTED, ids=lambda value: value.strip()[:40])
def test_a_planted_error_is_caught(name, good, bad, says):
    if says == SCHEMA and not CRDS.is_dir():
        pytest.skip(f"only KubeRay's resource definitions catch this one, and they are not in {CRDS}")
    assert good in TEXTS[name]
    found = problems(name, TEXTS[name].replace(good, bad, 1))
    assert found
    assert says == SCHEMA or says.lower() in "\n".join(found).lower()


def test_an_error_is_planted_in_every_deploy_file():
    assert {name for name, *_ in PLANTED} == set(FILES)


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=lambda value: value.strip()[:60])
def test_the_job_recipe_and_every_key_of_a_command_exist(name, line):
    for job in re.findall(r"jobs/\w+\.py", line):
        assert (ROOT / job).is_file()
    overrides = OVERRIDE.findall(line.replace("$workers", "4"))
    assert {key for key, _ in overrides} <= set(key_names())
    recipe = re.search(r"--config (\w+)", line)
    assert recipe is None or recipe.group(1) in recipe_names()
    jobs = [job for job in re.findall(r"jobs/(\w+)\.py", line) if job in JOBS]
    settings = [f"{key}={value.strip(chr(39))}" for key, value in overrides]
    config = load_config(recipe.group(1) if recipe else "default", settings, jobs[-1] if jobs else None)
    if "jobs/ingest.py" in line:
        assert config.ingest.input
        assert config.ingest.output


def test_commands_were_found_in_every_file_that_runs_a_job():
    found = {name for name, _ in COMMANDS}
    assert {name for name in FILES if name.startswith(("kuberay/ray", "kuberay/cron", "slurm/"))} <= found
    assert {"README.md", PAGE, "aws/cluster.yaml"} <= found


def test_commands_that_start_from_zero_workers_do_not_leave_gpus_and_cpus_to_auto():
    trained = [line for name, line in COMMANDS if "/opt/rayclip/jobs/train.py" in line]
    assert len(trained) >= 6
    assert all("cluster.use_gpu=true" in line and "cluster.cpus_per_worker=" in line for line in trained)
    embedded = [line for name, line in COMMANDS if "/opt/rayclip/jobs/embed.py" in line]
    assert embedded
    assert all("embed.use_gpu=true" in line and "embed.cpus_per_worker=" in line for line in embedded)


def test_every_placeholder_is_explained_with_the_folders_that_it_stands_in():
    rows = [line.split("|") for line in TEXTS["README.md"].splitlines() if line.startswith("| `YOUR_")]
    explained = {word: {folder.strip() for folder in row[3].split(",")} for row in rows for word in PLACEHOLDER.findall(row[1])}
    assert len(explained) >= 10
    for name in FILES:
        for word in set(PLACEHOLDER.findall(TEXTS[name])):
            assert name == "README.md" or name.split("/")[0] in explained[word], f"{name}: {word}"


def test_no_deploy_file_holds_what_looks_like_a_secret():
    secret = re.compile(
        r"AKIA[0-9A-Z]{16}|PRIVATE KEY|aws_secret_access_key|\b[0-9a-f]{32,}\b|stringData|auth_token:\s*\S*[\"']", re.I
    )
    assert not [(name, match.group()) for name in FILES for match in secret.finditer(TEXTS[name])]
    assert secret.search('auth_token: "super"')


def test_manifests_and_image_name_the_versions_of_the_project():
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    stated = [version for name in FILES for version in re.findall(r'rayVersion: "(.*)"', TEXTS[name])]
    assert len(stated) >= 3
    assert set(stated) == {constraints["ray"]}
    python = re.search(r"BASE_IMAGE=python:(\d+)\.(\d+)\.\d+-", TEXTS["docker/Dockerfile"])
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert allowed == ">=3.11,<3.15"
    assert (3, 11) <= tuple(map(int, python.groups())) < (3, 13)


def test_the_image_is_given_every_package_and_nothing_that_is_not_named():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    named = {line.removeprefix("!") for line in rules if line.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} <= named
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", TEXTS["docker/Dockerfile"], re.M) for word in line.split()} - {
        "."
    }
    assert {"pyproject.toml", "constraints.txt"} <= copied <= named
    assert all((ROOT / name).exists() for name in named)


def test_commands_find_the_code_where_the_image_has_it():
    folder = re.search(r"^WORKDIR (\S+)$", TEXTS["docker/Dockerfile"], re.M).group(1)
    paths = {path for name in FILES for path in re.findall(r"python (/\S+\.py)", TEXTS[name])}
    assert len(paths) >= 3
    assert all((ROOT / path.removeprefix(f"{folder}/")).is_file() for path in paths)


@pytest.mark.parametrize(
    ("action", "path", "allowed"),
    [
        ("s3:ListBucket", "", True),
        ("s3:ListBucketMultipartUploads", "", True),
        ("s3:GetObject", "/tables/0.parquet", True),
        ("s3:GetObject", "/pairs/manifest/1.json", True),
        ("s3:PutObject", "/pairs/manifest/1.json", True),
        ("s3:PutObject", "/runs/a/checkpoints/1", True),
        ("s3:PutObject", "/features/features/a.parquet", True),
        ("s3:PutObject", "/exports/a/export.json", True),
        ("s3:DeleteObject", "/runs/a/checkpoints/1", True),
        ("s3:AbortMultipartUpload", "/pairs/a.tar", True),
        ("s3:PutObject", "/tables/0.parquet", False),
        ("s3:DeleteObject", "/tables/0.parquet", False),
        ("s3:DeleteBucket", "", False),
        ("s3:PutBucketPolicy", "", False),
        ("s3:GetObject", "-of-others/secret", False),
    ],
)
def test_a_node_may_do_to_its_bucket_what_storage_asks_for_and_no_more(action, path, allowed):
    from moto.iam.access_control import IAMPolicy, PermissionResult

    text = filled_in(TEXTS["aws/iam-policy.json"])
    bucket = re.search(r"arn:aws:s3:::([\w.-]+)", text).group()
    result = IAMPolicy(text).is_action_permitted(action, bucket + path)
    assert (result == PermissionResult.PERMITTED) == allowed


def ingestion_cpus(name: str) -> int:
    """CPUs that the nodes without a GPU have at most, of the cluster that a file's commands are for."""
    if not name.startswith("kuberay/"):
        types = load_all(filled_in(TEXTS["aws/cluster.yaml"]))[0]["available_node_types"]
        groups = [node for name, node in types.items() if name != "head" and "GPU" not in node["resources"]]
        return sum(node["resources"]["CPU"] * node["max_workers"] for node in groups)
    own = load_all(TEXTS[name])[0]
    cluster = own["spec"]["jobTemplate"] if own["kind"] == "RayCronJob" else load_all(TEXTS["kuberay/raycluster.yaml"])[0]
    spec = cluster["rayClusterSpec"] if "rayClusterSpec" in cluster else cluster["spec"]
    total = 0
    for group in spec["workerGroupSpecs"]:
        wanted = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        total += 0 if "nvidia.com/gpu" in wanted else int(wanted["cpu"]) * group["maxReplicas"]
    return total


INGESTIONS = [(name, line) for name, line in COMMANDS if "jobs/ingest.py" in line and "sbatch" not in line and name != PAGE]
"""SLURM's has a node, and no autoscaler that would add another. The page's are compared with these."""


@pytest.mark.parametrize(("name", "command"), INGESTIONS)
def test_an_ingestion_asks_for_the_cpus_of_its_own_nodes_and_so_never_starts_one_with_a_gpu(name, command):
    (workers,) = re.findall(r"ingest\.num_workers=(\d+)", command)
    assert int(workers) == ingestion_cpus(name)

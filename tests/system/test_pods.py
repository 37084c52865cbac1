"""The pods of infra/kuberay as processes in namespaces of this machine (tests/support/pods.py): they start, drain and end."""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3_ENVIRONMENT
from tests.support.deploy_checks import INFRA, filled_in, load_all
from tests.support.kuberay_pods import head_pod, head_service, pod_failure_action, submitter_pod, worker_pod
from tests.support.namespaces import wait_until
from tests.support.pods import MACHINE, Kubelet, Pod, accounts, missing

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
S3, WEB = f"http://{MACHINE}:5000", f"http://{MACHINE}:8000"
TOKENS = {name: {"auth_token": f"token-of-{name}"} for name in ("rayclip", "rayclip-train-abcde", "rayclip-ingest-abcde")}
FIT_THIS_MACHINE = {
    "RAY_enable_worker_prestart": "0",  # else a worker process for each of a node's 44 CPUs
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
UPLOAD = """
import pathlib, sys, boto3
client, folder = boto3.client("s3", endpoint_url=sys.argv[1]), pathlib.Path(sys.argv[2])
client.create_bucket(Bucket="bucket")
for path in folder.rglob("*"):
    path.is_file() and client.upload_file(str(path), "bucket", str(path.relative_to(folder)))
"""
READ = """
import sys, boto3
found = boto3.client("s3", endpoint_url=sys.argv[1]).get_object(Bucket="bucket", Key=sys.argv[2])
sys.stdout.write(found["Body"].read().decode())
"""


def manifest(name: str, kind: str) -> dict[str, Any]:
    text = filled_in((INFRA / "kuberay" / name).read_text(encoding="utf-8"))
    (found,) = [manifest for manifest in load_all(text) if manifest["kind"] == kind]
    return found


class Cluster:
    """The pods of a RayCluster: a head, and the workers that are added."""

    def __init__(self, kubelet: Kubelet, name: str, spec: dict[str, Any]) -> None:
        self.kubelet, self.name, self.spec = kubelet, name, spec
        self.head = kubelet.run(f"{name}-head", head_pod(name, spec), head_service(name))
        self.workers: list[Pod] = []

    def add_worker(self, group: str) -> Pod:
        number = len(self.workers)
        self.workers.append(self.kubelet.run(f"{self.name}-{group}-{number}", worker_pod(self.name, self.spec, group)))
        return self.workers[-1]

    def resources(self) -> dict[str, float]:
        """Return what Ray in the head's pod says that the nodes have."""
        asked = self.head.execute(
            'python -c "import json, ray; ray.init(logging_level=40); print(json.dumps(ray.cluster_resources()))"'
        )
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout.splitlines()[-1])

    def submit(self, job: dict[str, Any], submission: str) -> Pod:
        """Start the pod that submits a RayJob's entrypoint."""
        return self.kubelet.run(f"submit-{submission}", submitter_pod(self.name, job, submission))

    def code_of(self, submission: str) -> int:
        """Return the exit code that jobs/submit.py gives for a job that was submitted by something else."""
        address = f"--address http://{head_service(self.name)}:8265"
        asked = self.head.execute(f"python jobs/submit.py {address} --wait-for {submission}")
        print(asked.stdout[-3000:], asked.stderr)
        return asked.returncode


@pytest.fixture(scope="module")
def kubelet(tmp_path_factory: pytest.TempPathFactory, data_set: str, draw_shape) -> Iterator[Kubelet]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("pods")
    role = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": S3}
    content, pictures = folder / "bucket", folder / "pictures"
    shutil.copytree(data_set, content / "pairs")
    pictures.mkdir()
    for number in range(6):
        (pictures / f"{number}.png").write_bytes(draw_shape("red", "disc", number))
    write_tables(content)
    with Kubelet(folder, TOKENS, dict.fromkeys(accounts(), role), FIT_THIS_MACHINE) as kubelet:
        kubelet.serve(sys.executable, "-m", "moto.server", "-H", MACHINE, "-p", "5000")
        kubelet.serve(sys.executable, "-m", "http.server", "8000", "--bind", MACHINE, "--directory", str(pictures))
        upload = (sys.executable, "-c", UPLOAD, S3, str(content))
        wait_until(lambda: kubelet.on_the_machine("wget", "-q", "-O-", S3).returncode == 0, 60, lambda: "moto")
        done = kubelet.on_the_machine(*upload, **S3_ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        yield kubelet
        for pod in kubelet.pods:
            print(f"=== {pod.name}\n{pod.log()[-6000:]}")


def write_tables(content: Path) -> None:
    """Write a table of 6 images in tables/, and one of 120 dead links in dead/."""
    import pyarrow as pa
    import pyarrow.parquet

    urls = {"tables": [f"{WEB}/{number}.png" for number in range(6)], "dead": [f"{WEB}/gone/{number}" for number in range(120)]}
    for name, column in urls.items():
        (content / name).mkdir(parents=True)
        table = pa.table({"url": column, "caption": [f"a red disc {number}" for number in range(len(column))]})
        pyarrow.parquet.write_table(table, content / name / "t.parquet")


def rows(kubelet: Kubelet, run: str, name: str = "metrics") -> list[dict[str, Any]]:
    read = kubelet.on_the_machine(sys.executable, "-c", READ, S3, f"runs/{run}/{name}.jsonl", **S3_ENVIRONMENT)
    return [json.loads(line) for line in read.stdout.splitlines() if line.endswith("}")]


# --- a RayJob


def train(job: dict[str, Any], name: str, steps: int, *more: str) -> dict[str, Any]:
    """Return the RayJob with a tiny recipe, on CPUs, one worker per pod."""
    small = job["entrypoint"].replace("--config vit_b_32 run.name=vit_b_32", f"--config debug_cpu run.name={name}")
    assert small != job["entrypoint"]
    cpu = ["cluster.use_gpu=false", "cluster.cpus_per_worker=44", "data.decode_workers=0", f"train.max_steps={steps}"]
    return {**job, "entrypoint": " ".join([small, *cpu, *more])}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return manifest("rayjob-train.yaml", "RayJob")["spec"]


@pytest.fixture(scope="module")
def training(kubelet: Kubelet, job: dict[str, Any]) -> Cluster:
    """The cluster of the RayJob as it begins: the head and one worker."""
    cluster = Cluster(kubelet, "rayclip-train-abcde", job["rayClusterSpec"])
    assert [group["replicas"] for group in cluster.spec["workerGroupSpecs"]] == [1]
    worker = cluster.add_worker("train")
    print(f"head ready after {cluster.head.wait_until_ready(120):.0f} s, worker after {worker.wait_until_ready(120):.0f} s")
    return cluster


def test_the_pods_of_a_rayjob_form_a_cluster_with_the_resources_of_the_file(training):
    found = training.resources()
    assert (found["CPU"], found["GPU"], found["memory"]) == (44, 4, 160 * 2**30 + 16 * 2**30)
    assert training.head.execute("id -u; id -g; pwd; touch here; grep CapBnd /proc/self/status").stdout.split() == [
        *("1000", "1000", "/opt/rayclip"),
        *("CapBnd:", "0000000000000000"),
    ]
    assert "48G" in training.workers[0].execute("df -h /dev/shm").stdout
    assert "/dev/shm has only" not in training.workers[0].log()


def test_the_rayjobs_entrypoint_trains_and_its_code_comes_back(kubelet, training, job):
    submitter = training.submit(train(job, "plain", 30), "first")
    assert submitter.wait(300) == 0, submitter.log()
    assert [row["step"] for row in rows(kubelet, "plain")] == list(range(1, 31))
    assert training.code_of("first") == 0
    for pod in (training.head, training.workers[0]):
        worst = {kind: pod.failures_in_a_row(kind) for kind in pod.results}
        print(f"{pod.name}: probes failed in a row {worst} of {len(pod.results['readinessProbe'])}")
        assert all(number < pod.main[kind]["failureThreshold"] for kind, number in worst.items())

"""The pods of infra/kuberay as processes in namespaces of this machine (tests/support/pods.py): they start, drain and end."""

import copy
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_NOT_MEANT, EXIT_STOPPED
from tests.conftest import S3_ENVIRONMENT
from tests.support.deploy_checks import INFRA, filled_in, load_all
from tests.support.kuberay_pods import head_pod, head_service, pod_failure_action, submitter_pod, worker_pod
from tests.support.namespaces import wait_until
from tests.support.pods import MACHINE, Kubelet, Pod, missing

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
S3, WEB = f"http://{MACHINE}:5000", f"http://{MACHINE}:8000"
TOKENS = {name: {"auth_token": f"token-of-{name}"} for name in ("rayclip", "rayclip-train-abcde", "rayclip-ingest-abcde")}
READY_S, JOB_S = 300.0, 900.0
"""Bounds for a machine that does other things too."""
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
ONE_WORKER = ("ingest.num_workers=1", f"ingest.fetch.allow_addresses=[{MACHINE}/32]")
READ = """
import sys, boto3
found = boto3.client("s3", endpoint_url=sys.argv[1]).get_object(Bucket="bucket", Key=sys.argv[2])
sys.stdout.write(found["Body"].read().decode())
"""


def manifests(name: str, kind: str) -> dict[str, dict[str, Any]]:
    """Return the manifests of one kind in a file, by name."""
    text = filled_in((INFRA / "kuberay" / name).read_text(encoding="utf-8"))
    return {manifest["metadata"]["name"]: manifest for manifest in load_all(text) if manifest["kind"] == kind}


class Cluster:
    """The pods of a RayCluster: a head, and the workers that are added."""

    def __init__(self, kubelet: Kubelet, name: str, spec: dict[str, Any]) -> None:
        self.kubelet, self.name, self.spec = kubelet, name, spec
        self.head = self._ready(f"{name}-head", head_pod(name, spec), head_service(name))
        self.workers: list[Pod] = []
        self._made = 0

    def add_worker(self, group: str) -> Pod:
        self._made += 1
        self.workers.append(self._ready(f"{self.name}-{group}-{self._made}", worker_pod(self.name, self.spec, group)))
        return self.workers[-1]

    def _ready(self, name: str, spec: dict[str, Any], *services: str) -> Pod:
        """Start a pod and wait until it is ready; a pod whose Ray fails to start is replaced, as the operator does."""
        for trial in range(3):
            pod = self.kubelet.run(f"{name}-{trial}", spec, *services)
            if pod.becomes_ready(READY_S):
                print(f"{pod.name}: ready after {time.monotonic() - pod.began:.0f} s")
                return pod
        raise AssertionError(f"{name} does not start:\n{pod.log()}")

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
    accounts, role = manifests("namespace.yaml", "ServiceAccount"), S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": S3}
    content, pictures = folder / "bucket", folder / "pictures"
    shutil.copytree(data_set, content / "pairs")
    pictures.mkdir()
    for number in range(6):
        (pictures / f"{number}.png").write_bytes(draw_shape("red", "disc", number))
    write_tables(content)
    with Kubelet(folder, TOKENS, dict.fromkeys(accounts, role), FIT_THIS_MACHINE) as kubelet:
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
    return manifests("rayjob-train.yaml", "RayJob")["rayclip-train"]["spec"]


@pytest.fixture(scope="module")
def training(kubelet: Kubelet, job: dict[str, Any]) -> Cluster:
    """The cluster of the RayJob as it begins: the head and one worker."""
    cluster = Cluster(kubelet, "rayclip-train-abcde", job["rayClusterSpec"])
    assert [group["replicas"] for group in cluster.spec["workerGroupSpecs"]] == [1]
    cluster.add_worker("train")
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
    assert submitter.wait(JOB_S) == 0, submitter.log()
    assert [row["step"] for row in rows(kubelet, "plain")] == list(range(1, 31))
    assert training.code_of("first") == 0
    for pod in (training.head, training.workers[0]):
        worst = {kind: pod.failures_in_a_row(kind) for kind in pod.results}
        print(f"{pod.name}: probes failed in a row {worst} of {len(pod.results['readinessProbe'])}")
        assert all(number < pod.main[kind]["failureThreshold"] for kind, number in worst.items())


def test_a_job_that_is_refused_gives_its_code_through_the_rayjob(training, job):
    submitter = training.submit(train(job, "refused", 30, "data.captions=[json.nothing]"), "refused")
    submitter.wait(JOB_S)
    assert training.code_of("refused") == EXIT_BAD_INPUT


def test_a_deleted_pod_saves_and_ends_within_its_grace_period_and_the_run_goes_on_without_it(kubelet, training, job):
    training.add_worker("train")
    rare = ("checkpoint.every_steps=1000000", "train.num_epochs=1000000")  # so that only the notice makes it save
    submitter = training.submit(train(job, "drained", 1_000_000, *rare), "drained")
    wait_for_steps(submitter, worlds=["2"])
    for worlds in (["2", "1"], ["2", "1", "1"]):
        pod, step = training.workers.pop(), last_step(submitter)
        code, seconds = pod.terminate()
        print(f"{pod.name}: notice at about step {step}, ended with {code} after {seconds:.0f} s")
        assert (code != 137, seconds < pod.spec["terminationGracePeriodSeconds"]) == (True, True), pod.log()
        if not training.workers:
            training.add_worker("train")  # as the operator does for a pod that is gone
        wait_for_steps(submitter, worlds)
        resumed = int(re.findall(r"resumes from checkpoints/step_(\d+)", submitter.log())[-1])
        print(f"resumed from step {resumed}")
        assert resumed >= step
    assert training.head.execute("ray job stop drained").returncode == 0
    assert training.code_of("drained") == EXIT_STOPPED
    steps = [row["step"] for row in rows(kubelet, "drained")]
    assert steps == list(range(1, len(steps) + 1))
    assert [str(start["world_size"]) for start in rows(kubelet, "drained", "starts")] == worlds


def test_the_pods_end_within_their_grace_periods(training):
    for pod in (*training.workers, training.head):
        code, seconds = pod.terminate()
        print(f"{pod.name} ended with {code} after {seconds:.0f} s")
        assert (code != 137, seconds < pod.spec["terminationGracePeriodSeconds"]) == (True, True), pod.log()


def last_step(submitter: Pod) -> int:
    return int(re.findall(r"\) step ([\d,]+)/", submitter.log())[-1].replace(",", ""))


def wait_for_steps(submitter: Pod, worlds: list[str]) -> None:
    """Wait until a run's log shows groups of these sizes, and three reports of steps since the last began.

    The record itself is in the bucket, where it is as new as the last checkpoint.
    """

    def made() -> bool:
        groups = re.split(r" steps, (\d) x cpu", submitter.log())
        return groups[1::2] == worlds and len(re.findall(r"\) step ", groups[-1])) >= 3

    wait_until(made, JOB_S, submitter.log)


# --- nightly ingestion


@pytest.fixture(scope="module")
def standing(kubelet: Kubelet) -> Cluster:
    """The cluster that stays, with one pod of its ingestion group, as the autoscaler would add it."""
    cluster = Cluster(kubelet, "rayclip", manifests("raycluster.yaml", "RayCluster")["rayclip"]["spec"])
    assert [group["replicas"] for group in cluster.spec["workerGroupSpecs"]] == [0, 0]
    cluster.add_worker("ingest")
    return cluster


@pytest.fixture(scope="module")
def nightly() -> dict[str, Any]:
    return manifests("cronjob-ingest.yaml", "CronJob")["rayclip-ingest"]["spec"]["jobTemplate"]["spec"]


def night(kubelet: Kubelet, nightly: dict[str, Any], name: str, *more: str) -> Pod:
    """Start the CronJob's pod, with settings for this machine and others."""
    spec = copy.deepcopy(nightly["template"]["spec"])
    spec["containers"][0]["args"] += [*ONE_WORKER, f"ingest.output=s3://bucket/{name}", *more]
    return kubelet.run(f"night-{name}", spec)


@pytest.mark.parametrize(
    ("name", "more", "code", "action"),
    [
        ("good", [], EXIT_DONE, "Complete"),
        ("column", ["ingest.url_column=link"], EXIT_BAD_INPUT, "Fail"),
        ("dead", ["ingest.input=s3://bucket/dead/*.parquet"], EXIT_NOT_MEANT, "Fail"),
        ("away", ["cluster.runtime_env.env_vars.AWS_ENDPOINT_URL=http://10.214.0.1:1"], EXIT_FAILED, "Retry"),
    ],
)
def test_the_cronjobs_pod_ends_with_the_ingestions_code_and_kubernetes_does_what_it_means(
    kubelet, standing, nightly, name, more, code, action
):
    pod = night(kubelet, nightly, name, *more)
    assert pod.wait(JOB_S) == code, pod.log()
    assert pod_failure_action(nightly, code, 0) == action
    assert pod_failure_action(nightly, code, nightly["backoffLimit"]) == ("Complete" if code == EXIT_DONE else "Fail")


def test_an_evicted_pod_of_the_cronjob_ends_at_once_and_leaves_its_job_running(kubelet, standing, nightly):
    pod = night(kubelet, nightly, "evicted")
    wait_until(lambda: "submitted raysubmit_" in pod.log(), 60, pod.log)
    code, seconds = pod.terminate()
    print(f"the submitting pod ended with {code} after {seconds:.1f} s")
    assert code == EXIT_STOPPED
    assert seconds < 10
    (submission,) = {word for word in pod.log().split() if word.startswith("raysubmit_")}
    assert standing.code_of(submission) == EXIT_DONE


def test_the_raycronjobs_entrypoint_ingests_on_a_cluster_of_its_own(kubelet):
    spec = manifests("raycronjob-ingest.yaml", "RayCronJob")["rayclip-ingest"]["spec"]["jobTemplate"]
    cluster = Cluster(kubelet, "rayclip-ingest-abcde", spec["rayClusterSpec"])
    cluster.add_worker("ingest")
    entrypoint = " ".join([spec["entrypoint"].strip(), *ONE_WORKER, "ingest.output=s3://bucket/own"])
    submitter = cluster.submit({**spec, "entrypoint": entrypoint}, "night")
    assert submitter.wait(JOB_S) == 0, submitter.log()
    assert cluster.code_of("night") == EXIT_DONE
    assert "version 1: 6 samples" in submitter.log()

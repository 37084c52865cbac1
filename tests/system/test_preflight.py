"""The check of a cluster before a run finds faults on a node, in a bucket and in a shard, and reports all of them."""

import subprocess
import sys

import boto3
import pytest

from tests.support.cluster import ROOT, MiniCluster
from tests.support.flaky_s3 import flaky_s3
from tests.support.runs import config_of
from training.data.data_sets import open_data_sets

OTHER_TORCH = "Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n"


@pytest.fixture
def spoilt(make_data_set, tmp_path):
    """A data set with one byte flipped in one tar: (uri, path of the tar)."""
    uri = make_data_set(str(tmp_path / "data"))
    shard = open_data_sets(config_of(uri, tmp_path).data)[0].manifest.shards[1]
    tar = tmp_path / "data" / shard.tar_path
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    return uri, shard.tar_path


def check(cluster, *settings):
    command = [sys.executable, "jobs/train.py", "--check", "--config", "debug_cpu", *settings]
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok  ", "FAIL"))]
    return done.returncode, {line.split()[1]: line for line in lines}, done.stdout + done.stderr


def test_faults_on_a_node_in_a_bucket_and_in_a_shard_are_all_found(spoilt, s3_environment, bucket, tmp_path):
    uri, tar = spoilt
    metadata = tmp_path / "other" / "torch-1.13.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(OTHER_TORCH)
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="made", Body=b"")
    with flaky_s3(s3_environment["AWS_ENDPOINT_URL"], every_503=10**9, every_cut=10**9, read_only=True) as server:
        cluster = MiniCluster(s3_environment | {"AWS_ENDPOINT_URL": server.address})
        try:
            cluster.add_node()
            cluster.add_node(environment={"PYTHONPATH": f"{metadata.parent}:{ROOT}"})
            code, found, text = check(cluster, f"data.uri={uri}", f"run.dir={bucket}/runs", "cluster.num_workers=2")
        finally:
            cluster.close()
    assert code == 1, text
    assert "has torch 1.13.1, not " in found["versions"], text
    assert found["clocks"].startswith("ok"), text
    assert "S3 refused (AccessDenied)" in found["storage"], text
    assert f"{tar}: its sha256 is not the manifest's" in found["data"], text
    assert found["workers"].startswith("FAIL"), text
    assert text.count("planted-secret") == 0


@pytest.mark.soak
def test_a_healthy_cluster_passes_in_less_than_two_minutes(data_set, tmp_path):
    cluster = MiniCluster({})
    try:
        for _ in range(2):
            cluster.add_node()
        code, found, text = check(cluster, f"data.uri={data_set}", f"run.dir={tmp_path}", "cluster.num_workers=2")
    finally:
        cluster.close()
    print(text)
    assert code == 0, text
    assert all(line.startswith("ok") for line in found.values())
    assert {"versions", "clocks", "storage", "data", "room", "memory", "step", "all-reduce"} == set(found)

"""Ingestion on clusters whose nodes die, join and leave: each row once, and no idle node is kept."""

import threading
import time

import pytest

from jobs.cli.command_line import CLUSTER_SETTINGS
from pipeline.storage.address import open_storage
from tests.support.autoscaling import AutoscalingCluster
from tests.support.chaos import check_data_set, write_table
from tests.support.cluster import MiniCluster, wait_until

PARTITION_ROWS = 10


def settings(table, output):
    return (
        "jobs/ingest.py",
        f"ingest.input={table}",
        f"ingest.output={output}",
        f"ingest.partition_size_rows={PARTITION_ROWS}",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
        "ingest.fetch.concurrency=4",
        "ingest.image.size_px=32",
    )


def partitions_done(output):
    return len(list(open_storage(str(output)).list("partitions/")))


@pytest.fixture
def cluster():
    one = MiniCluster(CLUSTER_SETTINGS)
    yield one
    one.close()


def test_an_ingestion_whose_nodes_and_head_are_killed_has_each_row_once(web, tmp_path, cluster):
    hurry, output, log = threading.Event(), tmp_path / "out", tmp_path / "log"
    table = write_table(tmp_path / "t.parquet", web, 300, slow_s=0.4, may_hurry=hurry)
    nodes = [cluster.add_node(), cluster.add_node()]
    job = cluster.job(*settings(table, output), log=log)
    wait_until(lambda: len(cluster.workers("MapWorker")) == 2 and partitions_done(output) >= 2, job, log)
    cluster.kill(nodes[0])
    before = partitions_done(output)
    wait_until(lambda: len(cluster.node_ids()) == 2, job, log)  # the cluster has noticed
    wait_until(lambda: partitions_done(output) >= before + 3, job, log)  # it continues on one node
    cluster.add_node()
    wait_until(lambda: len(cluster.workers("MapWorker")) == 2, job, log)  # and grows back when a node joins
    job.kill()  # the driver of a submitted job runs on the head
    cluster.kill(cluster.nodes[0])
    assert 5 <= partitions_done(output) < 300 / PARTITION_ROWS, "the head died halfway"
    hurry.set()
    other = MiniCluster(CLUSTER_SETTINGS)
    try:
        other.add_node()
        assert other.job(*settings(table, output), log=log).wait(timeout=120) == 0, log.read_text()
    finally:
        other.close()
    check_data_set(str(output), 300)
    assert open_storage(str(output)).exists("manifests/00000001.json")


@pytest.mark.timeout(300)
def test_an_ingestion_gets_nodes_from_the_autoscaler_and_they_are_removed_when_it_ends(web, tmp_path):
    hurry, output, log = threading.Event(), tmp_path / "out", tmp_path / "log"
    table = write_table(tmp_path / "t.parquet", web, 1000, slow_s=0.4, may_hurry=hurry)
    types = {
        "ingest_cpu": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 2},
        "train_gpu": {"resources": {"CPU": 4, "GPU": 1}, "min_workers": 0, "max_workers": 1},
    }
    cluster = AutoscalingCluster(CLUSTER_SETTINGS, types)
    try:
        assert len(cluster.node_ids()) == 1, "only the head"
        began = time.time()
        job = cluster.job(*settings(table, output), "ingest.num_workers=2", log=log)
        wait_until(lambda: len(cluster.node_ids()) == 2, job, log)
        print(f"first node after {time.time() - began:.1f} s")
        wait_until(lambda: len(cluster.workers("MapWorker")) == 2, job, log)
        print(f"two workers after {time.time() - began:.1f} s")
        hurry.set()
        assert job.wait(timeout=120) == 0, log.read_text()
        ended = time.time()
        cluster.wait_until_empty()
        print(f"no node {time.time() - ended:.1f} s after the job's end")
        assert not [node for node in cluster.all_nodes() if "GPU" in node["Resources"]], "an ingestion needs no GPU"
    finally:
        cluster.close()
    check_data_set(str(output), 1000)

"""CPUs and GPUs of a worker, from what the cluster has."""

import pytest

from pipeline.storage.address import open_storage
from training.config import ClusterConfig
from training.launch.worker_resources import cpus_per_worker, describe_resources, ray_folder, uses_gpu

NODES = [
    {"Alive": True, "Resources": {"CPU": 8.0}},
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": False, "Resources": {"CPU": 64.0}},
]


@pytest.mark.parametrize(
    ("num_workers", "cpus"), [(1, 8), (2, 6), (4, 3), ((1, 4), 3), (100, 1)], ids=["one", "two", "four", "range", "many"]
)
def test_auto_shares_the_clusters_cpus_and_exceeds_no_node(num_workers, cpus):
    assert cpus_per_worker(ClusterConfig(num_workers=num_workers), {"CPU": 12.0}, NODES) == cpus


def test_a_worker_larger_than_every_node_is_logged_and_waited_for(caplog):
    assert cpus_per_worker(ClusterConfig(cpus_per_worker=8), {"CPU": 12.0}, NODES) == 8
    assert not caplog.text
    assert cpus_per_worker(ClusterConfig(cpus_per_worker=9), {"CPU": 12.0}, NODES) == 9
    assert "cluster.cpus_per_worker=9: no node has more than 8 CPUs now; waiting for one" in caplog.text


def test_auto_uses_a_gpu_where_there_is_one():
    assert uses_gpu(ClusterConfig(), {"CPU": 2.0, "GPU": 1.0})
    assert not uses_gpu(ClusterConfig(), {"CPU": 2.0})
    assert uses_gpu(ClusterConfig(use_gpu=True), {})


def test_rays_own_state_lies_with_a_local_run_and_in_a_scratch_folder_else(tmp_path, bucket):
    assert ray_folder(open_storage(str(tmp_path / "run"))) == str(tmp_path / "run" / "ray")
    assert ray_folder(open_storage(f"{bucket}/run")).endswith("/rayclip/ray")


def test_what_a_cluster_has_is_one_line():
    total, free, nodes = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 0.5}, [{"Alive": True}, {"Alive": False}]
    assert describe_resources(total, free, nodes) == "the cluster has 4 CPUs (0.5 free) and 1 GPUs (0 free) on 1 nodes"

"""The check of a cluster: its findings, from what the nodes report. tests/system/test_preflight.py runs it on Ray."""

from importlib.metadata import version

import pytest

from jobs.cli import cluster_check
from jobs.cli.cluster_check import (
    PACKAGES,
    _check_clocks,
    _check_put_if_absent,
    _check_room,
    _check_storage,
    _check_versions,
    _Node,
    _read_shards,
)
from jobs.cli.config import load_config
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.odd_s3 import ignores

VERSIONS = {name: version(name) for name in PACKAGES}


def node(name="a", versions=VERSIONS, skew_s=0.0, storage=""):
    return _Node(name, versions, skew_s, storage)


def texts(findings):
    return [(finding.fine, str(finding)) for finding in findings]


def test_a_node_with_another_version_is_named_with_both():
    ((fine, text),) = texts(_check_versions([node(), node("b", VERSIONS | {"torch": "1.0"})]))
    assert not fine
    assert f"b has torch 1.0, not {VERSIONS['torch']}; install this process's versions on it" in text
    assert texts(_check_versions([node(), node("b")]))[0][0]


@pytest.mark.parametrize(("skew_s", "fine"), [(0.2, True), (-0.9, True), (1.5, False), (-2.0, False)])
def test_the_worst_clock_counts(skew_s, fine):
    (finding,) = _check_clocks([node(), node("b", skew_s=skew_s)])
    assert finding.fine == fine
    assert "b is " in str(finding)


def test_each_node_that_cannot_write_is_a_finding():
    config = load_config("debug_cpu")
    found = texts(_check_storage([node(), node("b", storage="no room"), node("c", storage="no keys")], config))
    assert [fine for fine, _ in found] == [False, False]
    assert "on b: no room" in found[0][1]
    assert texts(_check_storage([node()], config))[0][0]


@pytest.mark.parametrize(("workers", "fine"), [("3", True), ("4", False), ("[2,9]", True)])
def test_the_present_nodes_must_hold_the_least_number_of_workers(workers, fine):
    nodes = [{"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 2.0}}, {"Resources": {}}]
    settings = [f"cluster.num_workers={workers}", "cluster.cpus_per_worker=2", "cluster.use_gpu=false"]
    finding = _check_room(nodes, load_config("debug_cpu", settings))
    assert finding.fine == fine
    assert "3 workers of 2 CPU fit on 3 nodes" in str(finding)


def test_a_probe_that_another_node_wrote_must_be_here_and_is_deleted(tmp_path):
    storage = open_storage(str(tmp_path))
    assert "was written there but is not here" in cluster_check._read_probe(storage, "probe-1")
    storage.write("probe-1", b"")
    assert cluster_check._read_probe(storage, "probe-1") == ""
    assert not storage.exists("probe-1")


def test_shards_are_read_until_the_time_is_over_and_a_changed_one_is_a_problem(make_data_set, tmp_path):
    storage = open_storage(make_data_set(str(tmp_path / "data"), (2, 3)))
    shards = list(read_manifest(storage).shards)
    assert _read_shards(storage, shards, 60.0) == (2, [])
    assert _read_shards(storage, shards, -1.0) == (0, [])
    storage.local_path(shards[0].tar_path).write_bytes(b"damaged")
    count, problems = _read_shards(storage, shards, 60.0)
    assert count == 2
    assert problems


def test_the_run_folder_must_keep_put_if_absent_or_have_a_single_writer(store):
    settings = ["run.dir=s3://bucket/runs"]
    finding = _check_put_if_absent(load_config("debug_cpu", settings))
    assert finding.fine
    assert f"a second put of a key was refused by {store.address} (server: OddStore/1.0)" in str(finding)
    store.put = ignores
    finding = _check_put_if_absent(load_config("debug_cpu", settings))
    assert not finding.fine
    assert "does not keep put-if-absent: it wrote over an object that was there" in str(finding)
    finding = _check_put_if_absent(load_config("debug_cpu", [*settings, "run.single_writer=me"]))
    assert finding.fine
    assert "me is the single writer" in str(finding)
    assert not store.objects, "a check leaves no mark"

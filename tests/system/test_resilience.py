"""A run on a real cluster that loses workers, nodes, head and driver, grows and shrinks gives the same result."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from jobs.cli.command_line import CLUSTER_SETTINGS, EXIT_STOPPED
from tests.support.autoscaling import AutoscalingCluster
from tests.support.cluster import MiniCluster, wait_for_step, wait_until
from tests.support.runs import ALONE, config_of
from training.record.tracking import read_metrics
from training.trainer import train

STEPS = 50
SLOW = ("model.image_size_px=192", f"train.max_steps={STEPS}")  # steps slow enough to be disturbed
NUMBERS = ("loss", "loss_image_to_text", "loss_text_to_image", "temperature", "grad_norm")


@pytest.fixture(scope="module")
def undisturbed(data_set, tmp_path_factory):
    """An undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(config_of(data_set, folder, *SLOW), ALONE)
    return folder


def losses(folder):
    rows = [row for row in read_metrics(folder / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "no step twice, none missing"
    return torch.tensor([[row[name] for name in NUMBERS] for row in rows], dtype=torch.float64)


def weights(folder):
    """Weights of the last checkpoint without the biases of attention's keys: softmax ignores a constant added to all scores, so
    their gradient is only rounding error, which Adam turns into full steps.
    """
    last = max((folder / "debug_cpu" / "checkpoints").iterdir())
    found = load_file(last / "model.safetensors")
    for name in [name for name in found if name.endswith("in_proj_bias")]:
        query, _key, value = found[name].chunk(3)
        found[name] = torch.cat([query, value])
    return found


def assert_same_run(folder, other):
    """Compare every logged number and the final weights, within a relative 1e-4 (weights: of each tensor's norm)."""
    torch.testing.assert_close(losses(folder), losses(other), rtol=1e-4, atol=0)
    found, wanted = weights(folder), weights(other)
    assert found.keys() == wanted.keys()
    apart = {name: float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}
    print(f"weights differ by {max(apart.values()):.1e} at most")
    assert max(apart.values()) < 1e-4, apart


def versions(folder):
    """Versions of the data sets in the last checkpoint."""
    last = max((folder / "debug_cpu" / "checkpoints").iterdir())
    return [one["version"] for one in json.loads((last / "checkpoint.json").read_text())["data_sets"]]


def starts(folder):
    """(first step, number of workers) of every start."""
    return [(row["step"], row["world_size"]) for row in read_metrics(folder / "debug_cpu" / "starts.jsonl")]


def wait_for_starts(folder, count, driver, log):
    wait_until(lambda: len(starts(folder)) >= count, driver, log)


@pytest.fixture
def cluster():
    one = MiniCluster(CLUSTER_SETTINGS)
    yield one
    one.close()


def settings_of(data_set, folder, *overrides):
    return (
        f"data.uri={data_set}",
        f"run.dir={folder}",
        *SLOW,
        *["cluster.resize_every_s=2"] * any(override.startswith("cluster.num_workers=[") for override in overrides),
        "checkpoint.every_steps=5",
        *overrides,
    )


@pytest.mark.soak
def test_a_run_with_a_growing_data_set_a_lost_node_a_new_one_and_a_stop_is_the_same_run(
    data_set, make_data_set, tmp_path, undisturbed, cluster
):
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    grows = shutil.copytree(data_set, tmp_path / "set")
    nodes = [cluster.add_node(), cluster.add_node()]
    settings = settings_of(grows, tmp_path, "cluster.num_workers=[1,2]")
    driver = cluster.train(*settings, log=log)
    wait_for_step(metrics, 6, driver, log)
    make_data_set(str(grows), (40,), seed=5)  # version 2; every restart stays with version 1
    cluster.kill(nodes[1])
    wait_until(lambda: starts(tmp_path)[-1][1] == 1, driver, log)
    with cluster.paused():  # on a busy machine a node takes longer to start than the rest of the run
        cluster.add_node()
    wait_until(lambda: starts(tmp_path)[-1][1] == 2 and len(starts(tmp_path)) == 3, driver, log)
    wait_for_step(metrics, starts(tmp_path)[-1][0] + 2, driver, log)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == EXIT_STOPPED, log.read_text()
    stopped_at = max(row["step"] for row in read_metrics(metrics))
    assert stopped_at < STEPS
    assert f"stopped at step {stopped_at}" in log.read_text()
    train(config_of(grows, tmp_path, *SLOW), ALONE)  # and resumes without a cluster
    assert [workers for _, workers in starts(tmp_path)] == [2, 1, 2, 1]
    assert starts(tmp_path)[-1][0] == stopped_at, "it resumes at exactly that step"
    assert json.loads((tmp_path / "debug_cpu" / "result.json").read_text())["spent"]["starts"] == 4
    assert versions(tmp_path) == [1]
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.timeout(400)
def test_a_run_that_starts_alone_grows_when_a_node_joins_and_loses_it_is_the_same_run(
    data_set, make_data_set, tmp_path, cluster
):
    steps = "train.max_steps=32"
    train(config_of(data_set, tmp_path / "undisturbed", *SLOW, steps), ALONE)
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    grows = shutil.copytree(data_set, tmp_path / "set")
    cluster.add_node()
    driver = cluster.train(*settings_of(grows, tmp_path, "cluster.num_workers=[1,2]", steps), log=log)
    wait_for_step(metrics, 4, driver, log)
    make_data_set(str(grows), (40,), seed=5)  # version 2; later worker groups stay with version 1
    with cluster.paused():
        joined = cluster.add_node()
    wait_until(lambda: starts(tmp_path)[-1][1] == 2, driver, log)
    wait_for_step(metrics, starts(tmp_path)[-1][0] + 4, driver, log)
    cluster.kill(joined)
    assert driver.wait(timeout=180) == 0, log.read_text()
    assert [workers for _, workers in starts(tmp_path)] == [1, 2, 1]
    assert versions(tmp_path) == [1]
    assert_same_run(tmp_path, tmp_path / "undisturbed")


@pytest.mark.soak
def test_a_run_on_an_empty_cluster_gets_its_nodes_from_the_autoscaler_and_they_are_removed_at_its_end(
    data_set, tmp_path, undisturbed
):
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    cluster = AutoscalingCluster(CLUSTER_SETTINGS, {"cpu": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 2}})
    try:
        workers = ("cluster.num_workers=[1,2]", "cluster.cpus_per_worker=1", "cluster.use_gpu=false")
        driver = cluster.train(*settings_of(data_set, tmp_path, *workers), log=log)
        wait_until(lambda: bool(starts(tmp_path)) and starts(tmp_path)[-1][1] == 2, driver, log)
        wait_for_step(metrics, starts(tmp_path)[-1][0] + 4, driver, log)
        cluster.kill_node(cluster.node_ids()[-1])
        wait_until(lambda: starts(tmp_path)[-1][1] == 1, driver, log)
        wait_until(lambda: starts(tmp_path)[-1][1] == 2, driver, log)  # the autoscaler has added another node
        assert driver.wait(timeout=180) == 0, log.read_text()
        cluster.wait_until_empty()
    finally:
        cluster.close()
    print(starts(tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.soak
def test_ten_kills_of_a_worker_change_no_bit(data_set, tmp_path, undisturbed, cluster):
    rng, settings = random.Random(0), ("cluster.num_workers=2", "cluster.max_failures=20", "checkpoint.every_steps=3")
    for _ in range(2):
        cluster.add_node()
    calm = cluster.train(*settings_of(data_set, tmp_path / "calm", *settings), log=tmp_path / "calm.log")
    assert calm.wait(timeout=120) == 0, (tmp_path / "calm.log").read_text()
    folder, log = tmp_path / "killed", tmp_path / "killed.log"
    driver = cluster.train(*settings_of(data_set, folder, *settings), log=log)
    metrics, recoveries = folder / "debug_cpu" / "metrics.jsonl", []
    for number, step in enumerate(sorted(rng.sample(range(2, STEPS), 10))):
        wait_for_starts(folder, number + 1, driver, log)
        wait_for_step(metrics, step, driver, log)
        began = time.time()
        os.kill(rng.choice(cluster.workers()), signal.SIGKILL)
        wait_for_starts(folder, number + 2, driver, log)
        recoveries.append(time.time() - began)
    assert driver.wait(timeout=120) == 0, log.read_text()
    assert torch.equal(losses(folder), losses(tmp_path / "calm"))
    assert all(torch.equal(value, weights(tmp_path / "calm")[name]) for name, value in weights(folder).items())
    assert_same_run(folder, undisturbed)
    print(f"killed worker to training again: {', '.join(f'{s:.1f}' for s in recoveries)} s")
    print(log.read_text().splitlines()[-3:])
    assert max(recoveries) < 15


@pytest.mark.soak
def test_a_hung_worker_is_detected_by_the_other_and_both_are_restarted(data_set, tmp_path, undisturbed, cluster):
    for _ in range(2):
        cluster.add_node()
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    driver = cluster.train(*settings_of(data_set, tmp_path, "cluster.num_workers=2", "train.hang_timeout_s=4"), log=log)
    wait_for_step(metrics, 8, driver, log)
    os.kill(cluster.workers()[0], signal.SIGSTOP)
    wait_for_starts(tmp_path, 2, driver, log)
    assert driver.wait(timeout=120) == 0, log.read_text()
    assert "waiting for other ranks for " in log.read_text()
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.soak
def test_a_group_that_goes_from_two_to_three_to_one_to_two_is_the_same_run(data_set, tmp_path, cluster):
    slow = ("cluster.num_workers=[1,3]", "model.image_size_px=320", "checkpoint.every_steps=null")  # time for three resizes
    train(config_of(data_set, tmp_path / "undisturbed", *SLOW, *slow), ALONE)
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    nodes = [cluster.add_node(), cluster.add_node()]
    driver = cluster.train(*settings_of(data_set, tmp_path, *slow), log=log)
    wait_for_step(metrics, 6, driver, log)
    nodes.append(cluster.add_node())
    wait_until(lambda: starts(tmp_path)[-1][1] == 3, driver, log)
    grown_from = starts(tmp_path)[-1][0]
    assert grown_from > 0, "it saved because it was about to grow: nothing else triggers a checkpoint"
    wait_for_step(metrics, grown_from + 4, driver, log)
    began = time.time()
    for node in nodes[:2]:
        cluster.kill(node)
    wait_until(lambda: starts(tmp_path)[-1][1] == 1, driver, log)
    print(f"killed nodes to training again: {time.time() - began:.1f} s")
    cluster.add_node()
    wait_until(lambda: starts(tmp_path)[-1][1] == 2, driver, log)
    assert driver.wait(timeout=120) == 0, log.read_text()
    assert [workers for _, workers in starts(tmp_path)] == [2, 3, 1, 2]
    assert_same_run(tmp_path, tmp_path / "undisturbed")
    print(log.read_text().splitlines()[-3:])


@pytest.mark.soak
@pytest.mark.parametrize("notice", ["drain", "sigterm"])
def test_a_node_that_announces_its_end_loses_no_step_before_its_notice(data_set, tmp_path, cluster, notice):
    slow = ("model.image_size_px=320", "train.max_steps=40")  # time for the notice to expire
    train(config_of(data_set, tmp_path / "undisturbed", *SLOW, *slow), ALONE)
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    leaving = cluster.add_node(environment={"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "8"})
    _head, leaving_id = cluster.node_ids()
    cluster.add_node()
    never = ("checkpoint.every_steps=null", "cluster.num_workers=[1,2]", "cluster.resize_every_s=1000")
    driver = cluster.train(*settings_of(data_set, tmp_path, *slow, *never), log=log)
    wait_for_step(metrics, 5, driver, log)
    if notice == "drain":
        cluster.drain(leaving_id, seconds=8)
        time.sleep(9)
        cluster.kill(leaving)  # as the cloud would
    else:
        os.kill(leaving.pid, signal.SIGTERM)
    wait_until(lambda: len(starts(tmp_path)) == 2, driver, log)
    resumed_from = starts(tmp_path)[-1][0]
    assert resumed_from >= 5
    assert driver.wait(timeout=120) == 0, log.read_text()
    assert "a node of this run will be removed" in log.read_text()
    assert_same_run(tmp_path, tmp_path / "undisturbed")


@pytest.mark.soak
def test_a_run_whose_head_died_is_submitted_again_and_is_the_same_run(data_set, tmp_path, undisturbed, cluster):
    log, metrics = tmp_path / "log", tmp_path / "debug_cpu" / "metrics.jsonl"
    for _ in range(2):
        cluster.add_node()
    settings = settings_of(data_set, tmp_path, "cluster.num_workers=2")
    driver = cluster.train(*settings, log=log)
    wait_for_step(metrics, 12, driver, log)
    driver.kill()  # it ran on the head
    cluster.kill(cluster.nodes[0])
    other = MiniCluster(CLUSTER_SETTINGS)
    try:
        for _ in range(2):
            other.add_node()
        assert other.train(*settings, log=log).wait(timeout=180) == 0, log.read_text()
    finally:
        other.close()
    assert starts(tmp_path)[1][0] >= 10
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_of_ten_minutes_with_a_kill_every_minute_trains_most_of_the_time(data_set, tmp_path, cluster):
    rng, log, folder = random.Random(1), tmp_path / "log", tmp_path / "debug_cpu"
    for _ in range(2):
        cluster.add_node()
    endless = (
        "train.max_steps=100000",
        "train.num_epochs=100000",
        "checkpoint.every_minutes=0.1",
        "checkpoint.every_steps=null",
        "cluster.max_failures=99",
    )
    began = time.time()
    driver = cluster.train(*settings_of(data_set, tmp_path, "cluster.num_workers=2", *endless), log=log)
    wait_for_step(folder / "metrics.jsonl", 2, driver, log)
    for kill in range(1, 10):
        wait_until(lambda due=began + 60 * kill: time.time() > due, driver, log)
        os.kill(rng.choice(cluster.workers()), signal.SIGKILL)
    wait_until(lambda: time.time() > began + 600, driver, log, timeout_s=200)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == EXIT_STOPPED, log.read_text()
    losses(tmp_path)  # no step twice, none missing
    line = next(line for line in log.read_text().splitlines() if "goodput" in line)
    print(line)
    assert float(line.partition("goodput ")[2].partition("%")[0]) >= 60

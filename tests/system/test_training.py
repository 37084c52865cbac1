"""Training on real Ray Train workers: the same losses for any number of them, and through a SIGKILL."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from jobs.config import load_config
from training.distributed import World
from training.tracking import read_metrics
from training.trainer import train

pytestmark = pytest.mark.usefixtures("ray_session")


def config_of(data_set, folder, *overrides):
    return load_config("debug_cpu", [f"data.uri={data_set}", f"run.dir={folder}", *overrides])


def losses(folder):
    rows = [row for row in read_metrics(folder / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "no step twice, none missing"
    return torch.tensor([[row["loss"], row["loss_image_to_text"], row["temperature"]] for row in rows], dtype=torch.float64)


def test_one_and_two_workers_have_the_same_loss_at_every_step(data_set, tmp_path):
    from training.worker import run_training

    for workers in (1, 2):
        result = run_training(config_of(data_set, tmp_path / f"{workers}", f"cluster.num_workers={workers}"))
        assert (result.step, result.samples_seen) == (30, 30 * 32)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 30
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)
    assert one[-1, 0] < one[0, 0]


def worker_processes() -> list[int]:
    """Process ids of Ray Train's workers under this test's Ray; the machine may run others."""
    import ray

    session = str(ray._private.worker._global_node.get_session_dir_path()).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            raylet = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            ours = session in (Path("/proc") / raylet / "cmdline").read_bytes()
        except OSError:
            continue
        if ours and title.startswith(b"ray::RayTrainWorker"):
            found.append(int(folder.name))
    return sorted(found)


def kill_a_worker_at(step: int, metrics: Path, killed: list[int]) -> None:
    """Waits until the record shows the step, then kills one worker."""
    while True:
        rows = read_metrics(metrics)
        if rows and rows[-1]["step"] >= step:
            victim = worker_processes()[-1]
            os.kill(victim, signal.SIGKILL)
            killed.append(rows[-1]["step"])
            return
        time.sleep(0.005)


def test_a_worker_killed_in_mid_run_changes_no_loss(data_set, tmp_path, capfd):
    from training.worker import run_training

    overrides = ("train.max_steps=80", "checkpoint.every_steps=10", "cluster.num_workers=2")
    train(config_of(data_set, tmp_path / "undisturbed", *overrides), World(0, 1, torch.device("cpu")))
    killed: list[int] = []
    metrics = tmp_path / "killed" / "debug_cpu" / "metrics.jsonl"
    killer = threading.Thread(target=kill_a_worker_at, args=(13, metrics, killed), daemon=True)
    killer.start()
    result = run_training(config_of(data_set, tmp_path / "killed", *overrides))
    assert killed, "the kill came before the end"
    assert killed[0] < 80
    assert result.step == 80
    assert "resumes from checkpoints/step_000000" in capfd.readouterr().out
    torch.testing.assert_close(losses(tmp_path / "killed"), losses(tmp_path / "undisturbed"), rtol=1e-4, atol=0)

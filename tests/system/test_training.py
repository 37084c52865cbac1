"""Training on real Ray Train workers has the same losses for any number of workers, and through a SIGKILL."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from jobs.cli.config import load_config
from tests.support.runs import ALONE
from tests.support.wandb_file import history_of
from training.errors import RunError
from training.record.tracking import read_metrics
from training.trainer import train
from training.worker import run_training

pytestmark = pytest.mark.usefixtures("ray_session")


def config_of(data_set, folder, *overrides):
    return load_config("debug_cpu", [f"data.uri={data_set}", f"run.dir={folder}", *overrides])


def losses(folder):
    rows = [row for row in read_metrics(folder / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "no step twice, none missing"
    return torch.tensor([[row["loss"], row["loss_image_to_text"], row["temperature"]] for row in rows], dtype=torch.float64)


def samples(folder):
    """Fingerprints of the ordered keys of every step."""
    rows = [row for row in read_metrics(folder / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    prints = [row["batch_fingerprint"] for row in rows]
    assert len(set(prints)) == len(prints)
    return prints


@pytest.fixture(scope="module")
def one_process(data_set, tmp_path_factory):
    """The record of an undisturbed run of 30 steps in this process."""
    folder = tmp_path_factory.mktemp("one")
    result = train(config_of(data_set, folder), ALONE)
    assert (result.step, result.samples_seen) == (30, 30 * 32)
    assert len(losses(folder)) == 30
    assert losses(folder)[-1, 0] < losses(folder)[0, 0]
    return folder


@pytest.fixture(scope="module")
def two_workers(data_set, tmp_path_factory):
    """The record of the same run on two workers."""
    folder = tmp_path_factory.mktemp("two")
    run_training(config_of(data_set, folder, "cluster.num_workers=2"))
    return folder


def test_two_workers_have_the_same_samples_and_the_same_loss_at_every_step(one_process, two_workers):
    assert samples(two_workers) == samples(one_process)
    torch.testing.assert_close(losses(two_workers), losses(one_process), rtol=1e-4, atol=0)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_any_number_of_workers_has_the_same_samples_and_the_same_loss_at_every_step(data_set, tmp_path, one_process, workers):
    run_training(config_of(data_set, tmp_path, f"cluster.num_workers={workers}"))
    assert samples(tmp_path) == samples(one_process)
    torch.testing.assert_close(losses(tmp_path), losses(one_process), rtol=1e-4, atol=0)


def test_three_workers_with_every_option_of_a_recipe_equal_one_process(data_set, tmp_path):
    overrides = (
        "train.loss=sigmoid",
        "train.patch_dropout=0.5",
        "train.ema_decay=0.9",
        "train.activation_checkpointing=[image,text]",
        "optimizer.max_grad_norm=1",
        f"evaluation.retrieval_uri={data_set}",
    )
    alone = train(config_of(data_set, tmp_path / "one", *overrides), ALONE)
    shared = ("cluster.num_workers=3", "train.micro_batch_size=4")
    together = run_training(config_of(data_set, tmp_path / "three", *overrides, *shared))
    assert samples(tmp_path / "three") == samples(tmp_path / "one")
    torch.testing.assert_close(losses(tmp_path / "three"), losses(tmp_path / "one"), rtol=1e-4, atol=0)
    assert set(together.evaluation) == set(alone.evaluation)
    for name, value in alone.evaluation.items():  # one pair may change its rank
        assert together.evaluation[name] == pytest.approx(value, abs=1.01 if "median" in name else 1.01 / 64), name
    pairs = [json.loads((tmp_path / run / "debug_cpu" / "probe.json").read_text()) for run in ("one", "three")]
    assert pairs[0] == pairs[1]
    (one,), (three,) = (read_metrics(tmp_path / run / "debug_cpu" / "probe.jsonl") for run in ("one", "three"))
    torch.testing.assert_close(torch.tensor(three["similarity"]), torch.tensor(one["similarity"]), rtol=0, atol=1e-3)


def worker_processes() -> list[int]:
    """Process ids of the Ray Train workers of this test's Ray; the machine may run others."""
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
    """Wait until the record contains the step, then kill one worker."""
    while True:
        rows = read_metrics(metrics)
        if rows and rows[-1]["step"] >= step and worker_processes():
            victim = worker_processes()[-1]
            os.kill(victim, signal.SIGKILL)
            killed.append(rows[-1]["step"])
            return
        time.sleep(0.005)


@contextmanager
def killing(step: int, folder: Path) -> Iterator[list[int]]:
    """Kill one worker once the record contains the step; yield the list of steps at which that happened."""
    killed: list[int] = []
    metrics = folder / "debug_cpu" / "metrics.jsonl"
    killer = threading.Thread(target=kill_a_worker_at, args=(step, metrics, killed), daemon=True)
    killer.start()
    yield killed
    killer.join(timeout=10)
    assert killed, "the run ended before the kill"


@pytest.mark.soak  # test_resilience.py has a group that is resized by a kill
def test_a_run_that_goes_from_two_workers_to_one_and_to_three_through_kills_is_the_same_run(data_set, tmp_path, one_process):
    from ray.train import TrainingFailedError

    overrides = ("checkpoint.every_steps=2", "cluster.max_failures=0")
    for workers, step in ((2, 5), (1, 14)):
        with killing(step, tmp_path) as killed, pytest.raises(TrainingFailedError):
            run_training(config_of(data_set, tmp_path, *overrides, f"cluster.num_workers={workers}"))
        assert killed[0] < 30
    assert run_training(config_of(data_set, tmp_path, *overrides, "cluster.num_workers=3")).step == 30
    assert samples(tmp_path) == samples(one_process)
    torch.testing.assert_close(losses(tmp_path), losses(one_process), rtol=1e-4, atol=0)


def test_a_worker_killed_in_mid_run_changes_no_bit_of_a_loss(data_set, tmp_path, two_workers, capfd):
    overrides = ("checkpoint.every_steps=5", "cluster.num_workers=2", "tracking.wandb_mode=offline")
    with killing(7, tmp_path) as killed:
        result = run_training(config_of(data_set, tmp_path, *overrides))
    assert killed[0] < 30
    assert result.step == 30
    assert "resumes from checkpoints/step_000000" in capfd.readouterr().out
    assert samples(tmp_path) == samples(two_workers)
    assert torch.equal(losses(tmp_path), losses(two_workers))
    *_, last = sorted((tmp_path / "debug_cpu").glob("wandb/offline-run-*/*.wandb"))
    assert [row["_step"] for row in history_of(last, 30)] == list(range(1, 31)), "W&B has every step once"
    assert [row["loss"] for row in history_of(last, 30)] == losses(tmp_path)[:, 0].tolist()


def test_a_run_that_another_process_takes_over_ends_with_an_error_that_says_so(data_set, tmp_path):
    folder = tmp_path / "debug_cpu"

    def take_over() -> None:
        while not any(row["step"] >= 12 for row in read_metrics(folder / "metrics.jsonl")):
            time.sleep(0.01)
        (folder / "owner.json").write_text(json.dumps({"process": "another", "launch": "another"}))

    thread = threading.Thread(target=take_over, daemon=True)
    thread.start()
    endless = ("train.max_steps=5000", "cluster.num_workers=2", "cluster.max_failures=8")
    with pytest.raises(RunError, match="another process has taken over this run"):
        run_training(config_of(data_set, tmp_path, *endless))
    assert len(read_metrics(folder / "starts.jsonl")) == 1, "no worker trained after that"

"""The section of docs/cluster.md on one machine: every command, typed in order into one shell, prints what the page shows."""

import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs.cli.config import load_config
from tests.conftest import free_port
from tests.support.walkthrough import Shell, section, steps, unseen
from training.distributed import World
from training.record.tracking import read_metrics
from training.trainer import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
LINE_TIMEOUT_S = 300.0
SERVERS = ("raylet", "gcs_server", "dashboard.py", "http.server", "jobs/", "ray::RayTrainWorker")
NOT_SET = ("RAY_", "AWS_", "WANDB_", "VIRTUAL_ENV", "PYTHONPATH")
"""Prefixes of variables that a newcomer's terminal does not have."""


def with_free_ports(text: str) -> str:
    """The section, with a free port in place of each port that is in use on this machine."""
    for port in sorted(set(re.findall(r"\b24\d{3}\b", text))):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                text = text.replace(port, str(free_port()))
    return text


def terminal(folder: Path) -> tuple[Path, Path, dict[str, str]]:
    """(project, home, environment) of a fresh clone after `make demo`."""
    project, home = folder / "rayclip", folder / "home"
    project.mkdir()
    home.mkdir()
    for name in ("jobs", "model", "pipeline", "training"):
        (project / name).symlink_to(ROOT / name)
    (project / ".venv").symlink_to(sys.prefix)
    settings = {name: value for name, value in os.environ.items() if not name.startswith(NOT_SET)}
    # In place of the installation, which in the tests' environment may be that of another checkout.
    return project, home, settings | {"HOME": str(home), "PYTHONPATH": str(project)}


def check_the_record(walk: Path) -> None:
    """Compare every step of the walk's run with an undisturbed run in one process."""
    settings = (f"data.uri={walk / 'pairs'}", f"run.dir={walk / 'calm'}", "run.name=walk", "train.max_steps=200")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(load_config("debug_cpu", settings), World(rank=0, world_size=1, device=torch.device("cpu")))
    torch.set_num_threads(threads)
    calm, rough = (read_metrics(walk / runs / "walk" / "metrics.jsonl") for runs in ("calm", "runs"))
    assert [row["step"] for row in rough] == list(range(1, 201)), "no step twice, none missing"
    assert [row["batch_fingerprint"] for row in rough] == [row["batch_fingerprint"] for row in calm]
    losses = torch.tensor([[row["loss"] for row in rows] for rows in (rough, calm)])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


@pytest.mark.timeout(900)
def test_every_command_for_one_machine_prints_what_the_page_shows(tmp_path):
    project, home, settings = terminal(tmp_path)
    walk, shell = steps(with_free_ports(section(PAGE, "One machine"))), Shell(project, settings, tmp_path / "terminal.log")
    assert sum(len(step.typed) for step in walk) > 30
    try:
        for step in walk:
            if step is walk[-1]:  # it removes everything
                shutil.copytree(project / "walk", tmp_path / "walk")
            output = ""
            for line in step.typed:
                began = time.monotonic()
                code, shown = shell.type(line, LINE_TIMEOUT_S)
                print(f"{time.monotonic() - began:6.1f} s  {line}")
                assert code == 0, f"{line} ended with {code}:\n{shown}"
                output += f"{shown}\n"
            assert unseen(step.seen, output) is None, output
        assert not [command for command in shell.children().values() if any(name in command for name in SERVERS)]
        assert not (home / ".ray").exists()
        assert not (project / "walk").exists()
    finally:
        shell.close()
    check_the_record(tmp_path / "walk")

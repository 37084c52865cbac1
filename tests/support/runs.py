"""Small training runs in this process, and the fields of their record that must be equal in every repetition."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from jobs.cli.config import Config, load_config
from training.distributed import World
from training.record.tracking import read_metrics

ROOT = Path(__file__).parents[2]
BARE = """
import sys
import torch
from jobs.cli.config import load_config
from training.distributed import World
from training.trainer import train

result = train(load_config(sys.argv[1], sys.argv[2:]), World(0, 1, torch.device("cpu")))
print("finished" if result.finished else "not finished")
"""
ALONE = World(rank=0, world_size=1, device=torch.device("cpu"))
EXACT = ("step", "samples_seen", "epoch", "loss", "loss_image_to_text", "loss_text_to_image", "logit_scale", "temperature",
         "learning_rate", "grad_norm", "grad_norm_image", "grad_norm_text", "grad_norm_logit_scale",
         "batch_accuracy_image_to_text", "batch_accuracy_text_to_image", "repeated_caption_share", "skipped_samples",
         "skipped_steps", "batch_fingerprint")  # fmt: skip


def config_of(data_set: str, folder, *overrides: str) -> Config:
    return load_config("debug_cpu", [f"data.uri={data_set}", f"run.dir={folder}", "train.max_steps=12", *overrides])


def exact_rows(folder, name="debug_cpu"):
    rows = read_metrics(folder / name / "metrics.jsonl")
    return [[row[key] for key in EXACT] for row in rows if "loss" in row]


def start_script(code: str, *arguments: str, **options) -> subprocess.Popen[str]:
    """Start a Python process that runs `code` in the project's folder, on one thread and with its own W&B service."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, text=True, **options)


def run_script(code: str, *arguments: str) -> tuple[int, str]:
    """Run such a process; return (exit code, standard error)."""
    process = start_script(code, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=90)
    return process.returncode, errors

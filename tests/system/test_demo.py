"""The demo with all its data in object storage."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.job_server import environment

ROOT = Path(__file__).parents[2]


def run_demo(bucket: str, folder: Path, s3_environment: dict[str, str], *options: str) -> str:
    """Run the demo with shards and checkpoints in a bucket and return its output. The S3 keys appear nowhere."""
    command = [
        sys.executable,
        str(ROOT / "jobs" / "demo.py"),
        "--data-dir",
        f"{bucket}/demo",
        f"run.dir={bucket}/runs",
        *options,
    ]
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(RAY_ADDRESS="local", RAY_AUTH_MODE="disabled", WANDB_MODE="offline", **s3_environment),
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "held-out pairs among" in result.stdout
    assert "http_404" in result.stdout
    assert "OpenMoji" in result.stdout
    assert re.search("^W&B has this run once you upload it: on .*: wandb sync /.*offline-run-", result.stdout, re.MULTILINE)
    images = list((folder / "runs" / "demo-pictures").glob("*.png"))
    assert {image.name for image in images} == {"curves.png", "gallery.png"}
    secret = s3_environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in output
    storage = open_storage(bucket)
    for item in storage.list(""):
        assert secret.encode() not in storage.read(item.path), item.path
    return result.stdout


def test_a_shrunken_demo_has_its_shards_and_checkpoints_in_object_storage(bucket, s3_environment, tmp_path):
    shrunken = ("--concepts", "12", "train.max_steps=6", "optimizer.warmup_steps=2", "train.global_batch_size=32")
    run_demo(bucket, tmp_path, s3_environment, *shrunken)
    storage = open_storage(bucket)
    assert read_manifest(open_storage(f"{bucket}/demo/train")).num_samples > 50
    assert storage.exists("runs/demo/checkpoints/step_00000006/checkpoint.json")
    assert len(storage.read("runs/demo/metrics.jsonl").splitlines()) >= 6
    assert b"finished: 6 steps" in storage.read("runs/demo/report.html")


@pytest.mark.soak
def test_the_full_demo_in_object_storage_learns_to_compose(bucket, s3_environment, tmp_path):
    print(run_demo(bucket, tmp_path, s3_environment))
    figures = json.loads((tmp_path / "runs" / "demo-pictures" / "demo.json").read_text())["figures"]
    retrieval = next(row for name, row in figures.items() if name.startswith("R@1, 283 held-out pairs"))
    tone = next(row for name, row in figures.items() if name.startswith("tone"))
    for way in ("image_to_text", "text_to_image"):
        assert retrieval[way] > 0.25 > retrieval["tone_blind"]
        assert tone[way] > 0.6 > tone["chance"]
    assert read_manifest(open_storage(f"{bucket}/demo/train")).num_samples == 3000

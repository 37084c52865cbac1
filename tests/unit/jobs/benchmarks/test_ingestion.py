"""The ingestion benchmark: its arithmetic, and the commands of both sides."""

import ast
from pathlib import Path

import pytest

from jobs.benchmarks.ingestion import Measurement, Side, _machine_cpu_s, _ours, _process_cpu_s, _theirs, run_plan
from jobs.cli.config import load_config


def test_the_steady_state_is_the_difference_of_the_jobs_and_the_start_up_what_is_left():
    side = Side(small=Measurement(wall_s=10, cpu_s=12, num_images=100), large=Measurement(wall_s=30, cpu_s=42, num_images=300))
    assert side.images_per_s == pytest.approx(10)
    assert side.cpu_ms_per_image == pytest.approx(150)
    assert side.startup_s == pytest.approx(0)


def test_our_command_has_only_keys_that_exist():
    _, _, *settings = _ours(Path("t.parquet"), Path("out"), 2)
    assert load_config("default", settings, "ingest").ingest.num_workers == 2


def test_their_command_is_a_script_with_the_same_limits(tmp_path):
    _, script = _theirs(tmp_path / "t.parquet", tmp_path / "out", 2)
    (call,) = [node for node in ast.walk(ast.parse(Path(script).read_text())) if isinstance(node, ast.Call)]
    options = ast.literal_eval(call.keywords[0].value)
    assert (options["processes_count"], options["timeout"], options["number_sample_per_shard"]) == (2, 10, 2_500)


def test_the_driver_plans_generated_tables():
    title, line = run_plan((1_000,)).splitlines()
    assert title.split() == ["rows", "seconds", "driver", "MiB"]
    assert line.split()[0] == "1,000"


def test_cpu_seconds_only_grow():
    import os

    before = _machine_cpu_s(), _process_cpu_s(os.getpid())
    sum(number * number for number in range(2_000_000))
    after = _machine_cpu_s(), _process_cpu_s(os.getpid())
    assert after[0] > before[0]
    assert after[1] >= before[1]

"""Every path and command in the README exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.config import key_names, load_config, recipe_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
JOBS = sorted({word for line in COMMANDS for word in line.split() if word.startswith("jobs/")})


def test_the_two_commands_at_the_top_are_make_targets():
    first = [line for line in COMMANDS if line][:2]
    assert first == ["make demo", "make test"]
    shown = re.findall(r"^make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    assert {"demo", "test", "check", "soak"} == set(shown)
    for target in shown:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target


def test_every_path_in_backticks_exists():
    made_later = {".venv", "data", "runs", "metrics.jsonl", "report.html"}
    quoted = re.findall(r"`([\w./-]+)`", README)
    keys = set(key_names())
    paths = [text for text in quoted if ("/" in text or "." in text) and not text.startswith("--") and text not in keys]
    assert len(paths) >= 10
    missing = [path for path in paths if path not in made_later and not (ROOT / path).exists()]
    assert not missing


def test_every_job_that_is_shown_answers_help():
    assert len(JOBS) >= 3
    for job in JOBS:
        result = subprocess.run([sys.executable, job, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "usage" in result.stdout


@pytest.mark.parametrize("line", [line for line in COMMANDS if re.search(r"\bjobs/", line)])
def test_the_recipe_and_every_key_of_a_command_exist(line):
    overrides = [word.split("=", 1) for word in shlex.split(line) if re.match(r"[a-z_]+\.[a-z_.]+=", word)]
    known = set(key_names())
    assert {key for key, _ in overrides} <= known
    recipe = re.search(r"--config (\S+)", line)
    name = recipe.group(1) if recipe else "default"
    assert name in recipe_names()
    load_config(name, [f"{key}={value}" for key, value in overrides])


def test_every_line_of_the_tour_names_a_file():
    tour = README.split("## Six files to read")[1].split("## ")[0]
    files = re.findall(r"^\| `([^`]+)`", tour, flags=re.MULTILINE)
    assert len(files) == 6
    assert all((ROOT / path).is_file() for path in files)

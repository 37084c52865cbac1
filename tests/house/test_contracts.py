"""Contracts between folders catch what was never named in them: each wrong direction is planted in a module made for it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("rayclip", "pipeline", "model", "training", "jobs")
PLANTED = {
    "model/made_today.py": ("pipeline.errors", "training.errors", "jobs.cli.config"),
    "pipeline/storage/made_today.py": ("pipeline.dataset.manifest", "model.config", "ray"),
    "pipeline/dataset/made_today.py": ("pipeline.fetch.http_client", "pipeline.transform.image"),
    "pipeline/fetch/made_today.py": ("pipeline.transform.caption", "pipeline.ingest.plan"),
    "pipeline/transform/made_today.py": ("pipeline.fetch.memory_budget",),
    "pipeline/ingest/made_today.py": ("pipeline.versions.audit", "training.errors", "ray"),
    "training/data/made_today.py": ("pipeline.fetch.made_today", "pipeline.ingest.tables", "training.trainer", "ray"),
    "training/step/made_today.py": ("training.record.tracking", "jobs.cli.config", "pipeline.config"),
    "training/launch/made_today.py": ("training.worker", "ray"),
    "training/made_today.py": ("pipeline.made_today",),
    "jobs/cli/made_today.py": ("jobs.train", "jobs.reporting.page"),
    "jobs/reporting/made_today.py": ("jobs.report", "jobs.demonstration.results"),
    "pipeline/made_today.py": (),
}
"""A new module of each folder, and what it must not import."""


@pytest.fixture(scope="module")
def answer(tmp_path_factory) -> str:
    """What import-linter says of a copy of the tree with all that is planted."""
    copy = tmp_path_factory.mktemp("planted")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path, imports in PLANTED.items():
        (copy / path).write_text('"""Planted."""\n' + "".join(f"import {name}\n" for name in imports))
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(copy)})
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("importer", "imported"), [(path, name) for path, imports in PLANTED.items() for name in imports], ids=lambda text: text
)
def test_an_import_in_a_wrong_direction_is_caught(answer, importer, imported):
    module = importer.removesuffix(".py").replace("/", ".")
    assert re.search(rf"{re.escape(module)} -> {re.escape(imported)}\b", answer), answer


def test_a_module_of_no_known_layer_is_refused(answer):
    unlisted = re.findall(r"not listed as layers:\s+- (\S+)", answer)
    assert {"pipeline.made_today", "training.made_today"} == set(unlisted)

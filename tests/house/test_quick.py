"""`make quick` runs every test that needs no Ray: none of them can start one, and no folder of tests is forgotten."""

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import RAY_TESTS

ROOT = Path(__file__).parents[2]
STARTS_RAY = "import ray; ray.init(address='local', include_dashboard=False)"


def test_a_process_that_a_quick_test_starts_cannot_start_ray():
    result = subprocess.run([sys.executable, "-c", STARTS_RAY], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "/dev/null/ray" in result.stderr


def test_every_test_file_is_quick_or_may_start_ray():
    (targets,) = re.findall(r"^quick:.*\n\t\$\(PYTEST\) (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    folders = [*(ROOT / folder for folder in targets.split()), *RAY_TESTS]
    files = (ROOT / "tests").rglob("test_*.py")
    assert not [file for file in files if not any(file.is_relative_to(folder) for folder in folders)]

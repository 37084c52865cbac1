"""One word, one file; and a test file for each module, at the module's own path under tests/unit."""

from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("rayclip", "pipeline", "model", "training", "jobs")
MODULES = sorted(
    str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"
)
SHARED_NAMES = {"config.py", "errors.py", "metrics.py"}
"""Names that each package may use."""

TESTED_ELSEWHERE: dict[str, str] = {
    # ---- pipeline
    # ---- model
    # ---- training
    "training/worker.py": "tests/system/test_training.py: runs in the workers of a real Ray Train group",
    # ---- jobs
}
"""Modules without a test file of their own, each with the reason: PATH -> where it is tested, and why there."""


def expected_test(module: str) -> Path:
    package, _, name = module.rpartition("/")
    return ROOT / "tests" / "unit" / package / f"test_{name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_test_file_or_a_reason(module):
    if module in TESTED_ELSEWHERE:
        assert not expected_test(module).exists(), "has a test file now: take it off the list"
        named = TESTED_ELSEWHERE[module].split(":")[0]
        assert (ROOT / named).is_file(), f"{named} is no file; a reason is `PATH OF A TEST: why there`"
    else:
        assert expected_test(module).exists()


def test_only_modules_are_excused():
    assert set(TESTED_ELSEWHERE) <= set(MODULES)


def test_no_two_modules_share_a_name():
    places = defaultdict(list)
    for module in MODULES:
        places[Path(module).name].append(module)
    assert not {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SHARED_NAMES}

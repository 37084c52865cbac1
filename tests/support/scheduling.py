"""The order in which pytest-xdist gives test files to its workers: files that share one Ray, or a conftest.py, go to one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[2]


class SharedRayScheduling(LoadScopeScheduling):
    """Schedule whole files, so that a file's fixtures are built once, and treat files that share costly fixtures as one file.

    These are the files that share one Ray, and those of a folder of tests/unit with its own conftest.py.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if shares_ray(file):
            return "the shared Ray"
        return str(Path(file).parent) if shares_fixtures(file) else file


@cache
def shares_ray(file: str) -> bool:
    return file.startswith("tests/system/") and "ray_session" in (ROOT / file).read_text(encoding="utf-8")


@cache
def shares_fixtures(file: str) -> bool:
    return file.startswith("tests/unit/") and (ROOT / file).with_name("conftest.py").exists()

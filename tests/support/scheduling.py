"""The order in which pytest-xdist gives test files to its workers: all files that share one Ray go to one worker."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[2]


class SharedRayScheduling(LoadScopeScheduling):
    """Schedule whole files, so that a file's fixtures are built once, and treat the files that share one Ray as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "the shared Ray" if shares_ray(file) else file


@cache
def shares_ray(file: str) -> bool:
    return file.startswith("tests/system/") and "ray_session" in (ROOT / file).read_text(encoding="utf-8")

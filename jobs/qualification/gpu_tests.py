"""Runs tests/gpu by pytest, in this process: numbers of tests that passed and were skipped, and names of those that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.qualification.judgement import ON_CUDA, Aim, Figure, SkipError
from jobs.qualification.scale import Scale

FOLDER = Path(__file__).parents[2] / "tests" / "gpu"


def run(scale: Scale) -> Iterator[Figure]:
    """Every test that needs a GPU; on a CPU all of them are skipped."""
    import pytest

    if not FOLDER.is_dir():
        raise SkipError("tests/gpu is not part of an installed RayCLIP; run it from a checkout")
    reports = _Reports()
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist", "--continue-on-collection-errors")
    pytest.main([*options, str(FOLDER)], plugins=[reports])
    yield Figure("failed", reports.counts["failed"], aim=Aim(most=0))
    for name in reports.failed:
        yield Figure("failed test", name)
    yield Figure("passed", reports.counts["passed"], aim=Aim(least=1, on=ON_CUDA))
    yield Figure("skipped", reports.counts["skipped"])
    total = reports.counts.total()
    yield Figure("tests found", total, aim=Aim(least=1))


class _Reports:
    """A plugin that counts tests by their outcome."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._failed(report.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._failed(report.nodeid)
        elif report.when == "call" or report.skipped:
            self.counts[report.outcome] += 1

    def _failed(self, name: str) -> None:
        self.counts["failed"] += 1
        self.failed.append(name)

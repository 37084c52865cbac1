"""jobs/ingest.py in this process: its partitions run here, one after another, instead of on Ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import ingest
from jobs.cli.command_line import run
from pipeline.ingest import driver
from pipeline.ingest.partition import ingest_partition


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces Ray where the job and its driver use it."""

    def partitions(plan: Any, config: Any, _log: Any, metrics: Any, *_more: Any) -> Iterator[list[Any]]:
        records = [ingest_partition(spec, config) for spec in plan.partitions]
        for left, record in enumerate(records):
            driver._publish(record, left, metrics)
        if records:
            yield records

    counts: list[tuple[str, float]] = []
    counter = SimpleNamespace(inc=lambda amount, tags: counts.append((tags.get("reason", ""), amount)))
    gauge = SimpleNamespace(set=lambda value, tags: None)
    library = SimpleNamespace(Counter=lambda *_: counter, Gauge=lambda *_: gauge)
    monkeypatch.setattr(ingest, "connect_ray", lambda _cluster: None)
    monkeypatch.setattr(ingest, "quieten_ray_data", lambda: None)
    monkeypatch.setattr(driver, "_run_partitions", partitions)
    monkeypatch.setattr(driver, "_ray_metrics", lambda: library)


@dataclass
class Ingestion:
    """A table and its data set, as a person grows and ingests them."""

    folder: Path
    capsys: Any

    @property
    def table(self) -> Path:
        return self.folder / "t.csv"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def add(self, urls: list[str], table: str = "t.csv") -> None:
        """Appends rows to a table."""
        path = self.folder / table
        lines = [] if path.exists() else ["url,caption"]
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, *(f'"{url}",a picture' for url in urls)]) + "\n")

    def run(self, *words: str, table: str = "t.csv") -> tuple[int, str]:
        """(exit code, everything that the job printed)."""
        settings = [f"ingest.input={self.folder / table}", f"ingest.output={self.output}"]
        code = run(ingest.arguments(), ingest.job, [*settings, *words])
        return code, "".join(self.capsys.readouterr())

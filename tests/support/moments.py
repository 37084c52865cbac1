"""One command that is stopped at seeded moments, and is then run to its end: its result is that of an undisturbed run."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cluster import MiniCluster
from tests.support.stopped_jobs import Ending, run_job

ENDS_WITHIN_S = 30.0
WORKERS = ("RayTrainWorker", "TrainController", "MapWorker", "Map(")
BOTH = (signal.SIGINT, signal.SIGTERM)
TOO_BUSY = "The current node timed out during startup"
"""Ray gives up after 30 s, which a machine with other work may need."""
SEED = int(os.environ.get("RAYCLIP_SIGNALS_SEED", "19"))


def check_ended(ending: Ending, number: int, cluster: MiniCluster | None = None) -> None:
    """Checks the code, the time, and that no process is left: of the job's session, and of its workers on the cluster."""
    assert ending.code == 128 + number, ending.output
    assert ending.took_s < ENDS_WITHIN_S, ending.output
    assert not ending.left, f"{ending.left}\n{ending.output}"
    deadline = time.time() + 15
    while cluster is not None and (left := [one for kind in WORKERS for one in cluster.workers(kind)]):
        assert time.time() < deadline, f"on the cluster: {left}"
        time.sleep(0.1)


def told(ending: Ending, number: int) -> str:
    """One line of the report."""
    name, load = signal.Signals(number).name, os.getloadavg()[0]
    after = f"{name} after {ending.started_s:.1f} s: code {ending.code} {ending.took_s:.1f} s later"
    return f"{after}, left {len(ending.left)}, load {load:.0f}"


@dataclass
class Moments:
    """Stops one command at random moments until it has been stopped `count` times; compares each finished result.

    Attributes:
        command: folder -> arguments; its result is in the folder.
        result: folder -> something that must be equal.
    """

    name: str
    command: Callable[[Path], list[str]]
    result: Callable[[Path], object]
    folder: Path
    environment: dict[str, str]
    cluster: MiniCluster | None = None
    stops: list[Ending] = field(default_factory=list)

    def run(self, count: int) -> None:
        log, rng = self.folder / f"{self.name}.log", random.Random(f"{SEED}/{self.name}")
        undisturbed = self._undisturbed(self.folder / "undisturbed", log)
        wanted, place = self.result(self.folder / "undisturbed"), self.folder / "0"
        for attempt in itertools.count(1):
            number, after_s = BOTH[attempt % 2], rng.uniform(0.0, undisturbed.started_s)
            ending = run_job(self.command(place), number, lambda _, seconds, a=after_s: seconds > a, self.environment, log)
            print(f"{self.name}, of {undisturbed.started_s:.0f} s: {told(ending, number)}", flush=True)
            if ending.code == 0:  # it was done before
                assert self.result(place) == wanted
                place = self.folder / str(attempt)
            elif TOO_BUSY not in ending.output:
                check_ended(ending, number, self.cluster)
                self.stops.append(ending)
                if len(self.stops) == count:
                    break
        self._undisturbed(place, log)
        assert self.result(place) == wanted
        print(
            f"{self.name}: {count} stops, the slowest {max(one.took_s for one in self.stops):.1f} s; equal afterwards",
            flush=True,
        )

    def _undisturbed(self, place: Path, log: Path) -> Ending:
        for _ in range(3):
            ending = run_job(self.command(place), environment=self.environment, log=log)
            if TOO_BUSY not in ending.output:
                break
        assert ending.code == 0, ending.output
        assert not ending.left, ending.left
        assert "ConnectionError" not in ending.output, "the module's cluster runs beside it"
        return ending

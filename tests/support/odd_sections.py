"""Sections of a qualification that end as real ones may on the day: functions of this module by their names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from jobs.qualification.judgement import Aim, Figure, SkipError
from jobs.qualification.scale import Scale
from jobs.qualification.sections import Section


class OddSection(Section):
    def load(self) -> Callable[[Scale], Iterator[Figure]]:
        function: Callable[[Scale], Iterator[Figure]] = globals()[self.place]
        return function


def odd_section(place: str) -> OddSection:
    return OddSection(place, place, 1, "ends oddly")


def works(scale: Scale) -> Iterator[Figure]:
    print("said on the way")
    yield Figure("size", scale.size(2, 1), aim=Aim(most=1))


def raises(_scale: Scale) -> Iterator[Figure]:
    yield Figure("before", 1.0)
    print("said before the end")
    raise ValueError("a bad value\nand more about it")


def hangs(_scale: Scale) -> Iterator[Figure]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Figure("child", child.pid)
    time.sleep(600)


def crashes(_scale: Scale) -> Iterator[Figure]:
    yield Figure("before", 1.0)
    os.abort()


def lacks_pytest(_scale: Scale) -> Iterator[Figure]:
    raise ModuleNotFoundError("No module named 'pytest'", name="pytest")
    yield


def lacks_one_of_ours(_scale: Scale) -> Iterator[Figure]:
    raise ModuleNotFoundError("No module named 'training.gone'", name="training.gone")
    yield


def does_not_apply(_scale: Scale) -> Iterator[Figure]:
    raise SkipError("no such card")
    yield

"""A job in which nothing finishes ends if its workers only die; one whose work is slow does not."""

import pytest

from jobs.cli import worker_watch
from jobs.cli.worker_watch import WorkerWatch


class Clock:
    """Seconds, deaths of workers and the number of workers, as a test sets them."""

    def __init__(self):
        self.now, self.deaths, self.workers = 1000.0, 0, 2
        self.ended: list[str] = []
        self.watch = WorkerWatch(lambda: (self.deaths, self.workers), lambda: "the cluster has 2 CPUs", self.ended.append)

    def after(self, seconds: float, deaths: int) -> bool:
        """Returns whether the job has ended."""
        self.now, self.deaths = self.now + seconds, self.deaths + deaths
        assert self.watch() == "the cluster has 2 CPUs"
        return bool(self.ended)


@pytest.fixture
def clock(monkeypatch):
    one = Clock()
    monkeypatch.setattr(worker_watch.time, "monotonic", lambda: one.now)
    return one


def test_workers_that_only_die_while_nothing_finishes_end_the_job(clock):
    assert [clock.after(60, 7), clock.after(60, 7), clock.after(60, 7)] == [False, False, True]
    assert clock.ended[0].startswith("14 times a worker died while nothing was finished, as if killed (SIGKILL)")


def test_deaths_between_which_something_finishes_do_not(clock):
    assert not any(clock.after(120, 15) for _ in range(20))


def test_many_workers_may_lose_some_nodes_during_slow_work(clock):
    clock.workers = 100
    assert not any(clock.after(60, 30) for _ in range(10))

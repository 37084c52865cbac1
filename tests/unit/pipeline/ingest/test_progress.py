"""Progress: a bar on a terminal, and in a log few lines that a person can read."""

import io
import itertools
import re
import sys
import time

import pytest

from pipeline.ingest import progress
from pipeline.ingest.progress import Progress


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def follow(clock, seconds: int, per_second: int = 10) -> None:
    with Progress(seconds * per_second, "rows", "ingest") as bar:
        for second in range(seconds):
            clock.now = float(second + 1)
            bar.update(per_second, "95.0% success")


def test_a_log_has_lines_soon_at_first_and_each_30_s_in_the_end(clock, capsys):
    follow(clock, 10 * 3600)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 10 * 3600 / 30 + 60
    times = [int(re.match(r"ingest: ([\d,]+) of", line)[1].replace(",", "")) / 10 for line in lines]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[:3] == [1, 3, 5]
    assert max(pauses) <= 30
    assert pauses[1:-1] == sorted(pauses[1:-1])
    assert times[-1] == 36_000


def test_a_line_says_count_total_rate_time_left_and_the_share_of_success(clock, capsys):
    follow(clock, 200, per_second=10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ingest: 10 of 2,000 rows (0%), 10.0 rows/s, 03:19 left, 95.0% success"
    assert lines[-1] == "ingest: 2,000 of 2,000 rows (100%), 10.0 rows/s, 03:20 in all, 95.0% success"
    assert "\r" not in "".join(lines)


def test_bytes_have_a_prefix(clock, capsys):
    with Progress(4_000_000_000, "B", "verify") as bar:
        clock.now = 10.0
        bar.update(1_000_000_000)
    assert capsys.readouterr().err == "verify: 1.00G of 4.00GB (25%), 100MB/s, 00:30 left\n"


def test_a_job_that_ends_early_leaves_how_far_it_came(clock, capsys):
    def fail():
        with Progress(100, "tars", "index") as bar:
            clock.now = 1.0
            bar.update(5)
            bar.update(20)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert capsys.readouterr().err.splitlines()[-1].startswith("index: 25 of 100 tars (25%)")


def test_nothing_that_came_back_is_said_too(clock, capsys):
    with Progress(100, "tars", "index"):
        clock.now = 1.0
    assert capsys.readouterr().err == "index: 0 of 100 tars (0%), 0.0 tars/s, time left unknown\n"


def test_a_terminal_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(20, "rows", "ingest") as bar:
        bar.update(20, "100.0% success")
    assert "100%|" in terminal.getvalue()
    assert "100.0% success" in terminal.getvalue()
    assert "ingest: 20 of" not in terminal.getvalue()


def test_a_job_whose_workers_finish_nothing_says_what_the_cluster_has_again_and_again(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_FOR_S", 0.2)
    with Progress(100, "rows", "ingest", lambda: "the cluster has 0 CPUs") as bar:
        deadline = time.monotonic() + 10
        said = ""
        while said.count("nothing has finished") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
            said += capsys.readouterr().err
        bar.update(100)
    assert said.splitlines()[:2] == ["ingest: nothing has finished for 0 s; the cluster has 0 CPUs"] * 2


def test_a_job_whose_workers_finish_something_says_no_such_thing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_FOR_S", 5.0)
    with Progress(100, "rows", "ingest", lambda: "the cluster has 0 CPUs") as bar:
        for _ in range(10):
            bar.update(10)
    assert "nothing has finished" not in capsys.readouterr().err

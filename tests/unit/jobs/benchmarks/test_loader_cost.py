"""The benchmark of the loader's cost: a table of a small data set, with and without worker processes."""

import os
from pathlib import Path

from jobs.benchmarks import loader_cost
from jobs.benchmarks.loader_cost import _bytes_read, _process_cpu_s, _queued_s, run


def test_the_table_has_a_line_for_each_size_and_number_of_workers(monkeypatch):
    monkeypatch.setattr(loader_cost, "SAMPLES", 2_048)
    lines = run([3], [0, 1], pairs=2_048, rate=20_000, repeats=1).splitlines()
    assert len(lines) == 3
    rows = [line.split() for line in lines[1:]]
    assert [row[:2] for row in rows] == [["3", "0"], ["3", "1"]]
    alone, joined = (float(row[3]) for row in rows)
    assert 0 < joined < alone / 4, "the training process does little beside its workers"
    assert all(row[4].endswith("%") for row in rows)
    assert all(0.5 < float(row[5]) < 3 for row in rows), "all that is needed is read, and not much more"


def test_the_system_tells_what_a_process_has_used():
    before, queued, (read, calls) = _process_cpu_s(os.getpid()), _queued_s(), _bytes_read([os.getpid()])
    sum(range(1_000_000))
    assert _process_cpu_s(os.getpid()) > before
    assert _queued_s() >= queued
    size = len(Path(__file__).read_bytes())
    later = _bytes_read([os.getpid()])
    assert later[0] >= read + size
    assert later[1] > calls

"""The retrieval benchmark: both sides find the same."""

from jobs.benchmarks.ranking import SIDES, _measure, run


def test_both_sides_find_the_same_recalls_and_the_table_has_a_line_for_each():
    import torch

    threads = torch.get_num_threads()
    recalls = [_measure(side, pairs=300, dimensions=16, threads=threads)["recalls"] for side in SIDES]
    assert recalls[0] == recalls[1]
    assert 0 < recalls[0][0] < recalls[0][2] <= 300


def test_a_comparison_runs_each_side_in_its_own_process():
    title, _, *lines = run(pairs=200, dimensions=8, threads=1, repeats=1).splitlines()
    assert title == "200 pairs of 8 dimensions, 1 threads"
    assert [line[:12].strip() for line in lines] == list(SIDES)

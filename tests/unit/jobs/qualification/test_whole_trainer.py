"""A run of the trainer on a data set that is made for it; test_qualify.py runs the section."""

from jobs.benchmarks.synthetic_data import write_data_set
from jobs.qualification.scale import Scale
from jobs.qualification.whole_trainer import _train


def test_a_run_has_a_row_for_each_step_and_the_batch_that_was_asked_for(tmp_path):
    write_data_set(f"{tmp_path}/data", 16, distinct_images=2)
    rows = _train(Scale("cpu", tiny=True), tmp_path, 8, 0, "timed", 3)
    assert [row["samples_seen"] for row in rows] == [8, 16, 24]
    assert all(0 <= row["data_wait_share"] <= 1 for row in rows)

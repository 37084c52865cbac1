"""The record of a run, read in any state."""

import numpy as np
import pytest

from jobs.reporting.run_data import parse_record, read_run
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.reports import report_of


def test_a_record_whose_rows_differ_has_a_gap_where_a_step_has_no_number():
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "evaluation/r1": 0.5}, {"step": 2, "loss": None, "grad_norm": 3.0}]
    report = report_of(rows, [{"step": 3, "loss": 1.0}])
    assert report.steps["step"].tolist() == [1, 2, 3]
    assert report.steps["loss"].tolist() == pytest.approx([2.0, np.nan, 1.0], nan_ok=True)
    assert report.steps["grad_norm"].tolist() == pytest.approx([np.nan, 3.0, np.nan], nan_ok=True)
    assert np.isnan(report.steps["never_logged"]).all()
    assert report.evaluations == [{"step": 1, "evaluation/r1": 0.5}]


def test_a_last_row_that_is_being_written_is_ignored():
    steps, evaluations = parse_record(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo', problems := [])
    assert steps.count == 1
    assert steps.last == {"step": 1, "loss": 2.0}
    assert (evaluations, problems) == ([], [])


@pytest.mark.parametrize("bad", [b'{"step": 2, "lo', b"", bytes(40), b"<<<<<<< HEAD", b"[1]", b"7", b"\xff"])
def test_a_row_that_cannot_be_read_costs_itself_and_is_said(bad):
    rows = [b'{"step": %d, "loss": 2.0}' % step for step in range(1, 6)]
    steps, _ = parse_record(b"".join(row + b"\n" for row in (*rows[:1], bad, *rows[2:])), problems := [])
    assert steps["step"].tolist() == [1, 3, 4, 5]
    assert problems == ["metrics.jsonl: 1 lines cannot be read and are skipped; the first is line 2"]


def test_a_last_row_without_goodput_leaves_the_time_unknown():
    report = report_of([{"step": 1, "loss": 2.0, "train_s": 3.0}], [], starts=[{"lost_s": 0.0, "start_up_s": 1.0}])
    assert (report.spent.training_s, report.spent.elapsed_s) == (3.0, 0.0)


def test_a_run_with_a_configuration_only_has_no_steps_and_says_what_is_missing(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: a}")
    report = read_run(open_storage(str(tmp_path)), "a")
    assert report.steps.count == 0
    assert report.total_steps is None
    assert report.spent is None
    assert "config.yaml does not name the data of the run" in report.problems[0]


def test_an_empty_folder_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="holds no record of a run; name a run that has started"):
        read_run(open_storage(str(tmp_path)), "a")


def test_the_planned_steps_are_those_of_the_last_start():
    assert report_of(starts=[{"total_steps": 10}, {}, {"total_steps": 20}]).total_steps == 20

"""What a run prints: few lines, whatever it lasts, with what a person wants to know among them."""

import itertools
import re

import pytest

from pipeline.errors import InputError
from tests.support.odd_s3 import ignores
from tests.support.runs import config_of
from training.record import run_record
from training.record.goodput import Launch
from training.record.run_record import RunRecord, check_run_folder
from training.run_plan import plan_run

STEP = {"loss": 1.0, "temperature": 0.07, "samples_per_s": 10.0, "data_wait_share": 0.0}


class Clock:
    """A second passes for each step."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def time(self):
        return 1e9 + self.now


@pytest.fixture
def day(data_set, tmp_path, monkeypatch, capsys):
    """The lines of a run of a day, which makes a step a second and evaluates each hour."""
    steps = 24 * 3600
    launch = Launch()
    run = RunRecord(plan_run(config_of(data_set, tmp_path, f"train.max_steps={steps}", "train.num_epochs=100000")), launch,
                    launch.began, 1, "cpu")  # fmt: skip
    monkeypatch.setattr(run, "_tracker", Silent())
    clock = Clock()
    monkeypatch.setattr(run_record, "time", clock)
    run.ready({})
    for step in range(1, steps + 1):
        clock.now = float(step)
        run.log_step({"step": step, **STEP}, 1.0, 0.0, 0.0)
        if step % 3600 == 0:
            run.log_evaluation(step, {"evaluation/image_to_text_r1": 0.5})
    return capsys.readouterr().out.splitlines()


def test_a_note_on_a_figure_is_marked_at_each_evaluation_and_printed_once(data_set, tmp_path, monkeypatch, capsys):
    run = RunRecord(plan_run(config_of(data_set, tmp_path)), Launch(), 0.0, 1, "cpu")
    monkeypatch.setattr(run, "_tracker", Silent())
    for step in (5, 10):
        run.log_evaluation(step, {"evaluation/top1": 0.5, "evaluation/r1": 0.25, "evaluation_notes/top1": "names by position"})
    assert capsys.readouterr().out.splitlines() == [
        "evaluation at step 5: top1 0.500*  r1 0.250",
        "  * names by position",
        "evaluation at step 10: top1 0.500*  r1 0.250",
    ]


class Silent:
    def log(self, row):
        pass


def test_a_day_of_training_is_some_thousand_lines(day):
    steps = [int(match[1].replace(",", "")) for line in day if (match := re.match(r"step ([\d,]+)/86,400  loss", line))]
    assert len(steps) < 1600
    assert (steps[0], steps[-1]) == (1, 86_400)
    pauses = [later - earlier for earlier, later in itertools.pairwise(steps)][:-1]
    assert max(pauses[: 60 // 6]) <= 6
    assert pauses == sorted(pauses)
    assert max(pauses) <= 61
    assert sum(line.startswith("evaluation at step") for line in day) == 24


def test_a_run_that_has_its_id_keeps_it_on_a_store_that_ignores_the_condition(store, data_set):
    config = config_of(data_set, "s3://bucket/runs")
    plan = plan_run(config)
    check_run_folder(plan.run, config.run.single_writer)
    RunRecord(plan, Launch(), 0.0, 1, "cpu")
    first = plan.run.read("run.json")
    store.put = ignores
    check_run_folder(plan.run, config.run.single_writer)
    RunRecord(plan, Launch(), 0.0, 1, "cpu")
    assert plan.run.read("run.json") == first


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_new_run_on_such_a_store_has_a_single_writer_or_is_refused(store, data_set):
    config = config_of(data_set, "s3://bucket/runs", "run.single_writer=me")
    plan = plan_run(config)
    with pytest.raises(InputError, match=r"run\.single_writer=NAME"):
        check_run_folder(plan.run, "")
    check_run_folder(plan.run, config.run.single_writer)
    RunRecord(plan, Launch(), 0.0, 1, "cpu")
    assert plan.run.exists("run.json")

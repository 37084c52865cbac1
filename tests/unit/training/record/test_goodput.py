"""Where a run's time went: every second is in one account, over all starts, whatever the clocks did."""

import time

import pytest

from tests.support.runs import ALONE, config_of
from training.record.goodput import Launch, Ledger
from training.record.tracking import read_metrics
from training.trainer import Trainer, train


def row(step, at, train_s, checkpoint_s=0.0):
    return {"step": step, "time": at, "train_s": train_s, "checkpoint_s": checkpoint_s, "evaluation_s": 0.0}


def start_of(launch, ready, start_up_s=5.0, lost_s=0.0, closed_s=0.0):
    return {"launch": launch.id, "launch_began": launch.began, "ready": ready, "start_up_s": start_up_s, "lost_s": lost_s,
            "closed_s": closed_s, "evaluation_s": 0.0, "checkpoint_s": 0.0}  # fmt: skip


def test_steps_that_were_cut_are_lost_and_the_time_between_two_launches_is_nobodys():
    now = time.time()
    first, second = Launch("first", now - 1000), Launch("second", now - 100)
    kept, cut = [row(1, now - 980, 10), row(2, now - 970, 10, checkpoint_s=1)], [row(3, now - 960, 10)]
    ledger = Ledger(second, [start_of(first, ready=now - 995)], kept, cut, began=now - 80)
    assert ledger.ready(step=2, world_size=1)["closed_s"] == pytest.approx(
        40, abs=1
    )  # first was last heard of at its third row
    spent = ledger.add(train_s=20, evaluation_s=3, checkpoint_s=2)
    assert (spent.training_s, spent.lost_s, spent.checkpoints_s, spent.evaluation_s) == (40, 10, 3, 3)
    assert spent.start_up_s == pytest.approx(5 + 80, abs=1)
    assert spent.elapsed_s == pytest.approx(40 + 101, abs=1)
    assert spent.starts == 2


def test_what_the_last_step_that_is_kept_stopped_for_is_not_lost_with_the_step_after_it():
    now, launch = time.time(), Launch()
    kept, cut = [row(1, now - 90, 10)], [row(2, now - 80, 10, checkpoint_s=3), row(3, now - 70, 10, checkpoint_s=4)]
    first = Ledger(launch, [start_of(launch, ready=now - 95)], kept, cut, began=now - 20)
    again = Ledger(launch, [start_of(launch, ready=now - 95), first.ready(step=1, world_size=1)], kept, [], began=now)
    for ledger in (first, again):
        spent = ledger.add(0, 0, 0)
        assert (spent.training_s, spent.checkpoints_s, spent.lost_s) == (10, 3, 20 + 4)


def test_a_start_within_a_launch_counts_the_time_since_as_waiting():
    now = time.time()
    launch = Launch("one", now - 100)
    ledger = Ledger(launch, [start_of(launch, ready=now - 95)], [row(1, now - 80, 15)], [], began=now - 20)
    ledger.ready(step=1, world_size=1)
    spent = ledger.add(0, 0, 0)
    assert spent.elapsed_s == pytest.approx(100, abs=1)
    assert spent.waiting_s == pytest.approx(100 - 15 - 5 - 20, abs=1)
    assert spent.goodput == pytest.approx(0.15, abs=0.01)
    assert "goodput 15" in str(spent)


def test_a_clock_that_goes_backwards_makes_no_time_negative():
    now = time.time()
    launch = Launch("one", now + 500)
    ledger = Ledger(launch, [start_of(Launch("before", now + 900), ready=now + 800)], [row(1, now - 80, 15)], [], now + 300)
    ledger.ready(step=1, world_size=1)
    spent = ledger.add(1, 0, 0)
    assert min(spent.as_row().values()) >= 0
    assert spent.goodput <= 1


def test_a_run_whose_clock_goes_backwards_is_the_same_run(data_set, tmp_path, monkeypatch):
    real, hours = time.time, iter(range(100_000))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(hours))
    result = train(config_of(data_set, tmp_path, "checkpoint.every_minutes=0.01"), ALONE)
    assert result.step == 12
    assert 0 < result.spent["goodput"] <= 1


def train_and_die_at_step_8(config):
    after = Trainer._after_step

    def dying(self):
        after(self)
        if self.position.step == 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_after_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(config, ALONE)


def test_a_finished_run_says_where_its_time_went(data_set, tmp_path, capsys):
    train_and_die_at_step_8(config_of(data_set, tmp_path, "checkpoint.every_steps=5"))
    result = train(config_of(data_set, tmp_path, "checkpoint.every_steps=5", f"evaluation.retrieval_uri={data_set}"), ALONE)
    spent = result.spent
    assert spent["starts"] == 2
    assert min(spent["training_s"], spent["lost_s"], spent["start_up_s"], spent["checkpoints_s"], spent["evaluation_s"]) > 0
    parts = ("training_s", "evaluation_s", "checkpoints_s", "lost_s", "start_up_s", "waiting_s")
    assert sum(spent[part] for part in parts) == pytest.approx(spent["elapsed_s"])
    rows = read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")
    assert spent["training_s"] == pytest.approx(sum(row["train_s"] for row in rows if "train_s" in row))
    assert [row["step"] for row in read_metrics(tmp_path / "debug_cpu" / "starts.jsonl")] == [0, 5]
    assert f"goodput {spent['goodput']:.1%} of" in capsys.readouterr().out


def test_runs_of_one_name_in_object_storage_keep_their_accounts_apart_on_one_node(data_set, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = (config_of(data_set, f"{bucket}/{place}", "checkpoint.every_steps=5") for place in ("first", "second"))
    train_and_die_at_step_8(first)
    other = train(second, ALONE).spent
    assert (other["starts"], other["lost_s"]) == (1, 0)
    again = train(first, ALONE).spent
    assert again["starts"] == 2
    assert again["lost_s"] > 0, "steps 6 to 8 are in this node's copy of the record alone"

"""The benchmarks of whole runs: their recipes, and a bare run as they start it."""

from jobs.benchmarks.whole_runs import BARE, WARM_UP_STEPS, _rate, _recipe, _step_s, _train
from jobs.cli.config import load_config


def test_each_run_has_its_own_recipe_name(tmp_path):
    first, second = (_recipe(tmp_path, "debug_cpu", "data/x", 8, steps, "train.seed=3") for steps in (4, 5))
    configs = [load_config(str(path)) for path in (first, second)]
    assert [config.run.name for config in configs] == ["run-0", "run-1"]
    assert [config.train.max_steps for config in configs] == [4, 5]
    assert configs[0].train.seed == 3
    assert configs[0].tracking.wandb_mode == "disabled"


def test_a_bare_run_gives_its_rows_after_the_first_steps_and_is_removed(data_set, tmp_path):
    path = _recipe(tmp_path, "debug_cpu", data_set, 16, 4)
    rows = _train(BARE, path)
    assert [row["step"] for row in rows] == [WARM_UP_STEPS + 1, WARM_UP_STEPS + 2]
    assert _rate(rows) > 0
    assert all(_step_s(row) > 0 for row in rows)
    assert not (tmp_path / "runs" / "run-0").exists()

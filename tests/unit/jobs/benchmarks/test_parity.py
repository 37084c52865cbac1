"""The comparison of whole runs: its arithmetic and its recipe. tests/system/test_open_clip.py runs it."""

import pytest

from jobs.benchmarks.parity import LEARNING_RATES, Seed, _table, recipe, settings_of, summary


def seed(**changes) -> Seed:
    ours = [1.0] * 100
    ours[49], ours[70] = 1.01, 5.0
    return Seed(**({"seed": 0, "our_losses": ours, "peer_losses": [1.0] * 100, "our_recall": (0.5, 0.25),
                    "peer_recall": (0.5, 0.75)} | changes))  # fmt: skip


def test_only_every_50th_step_counts():
    assert seed().largest_difference() == pytest.approx(0.01)


def test_the_summary_has_the_mean_and_the_deviation_of_both_sides():
    first, *lines = summary([seed(), seed(our_recall=(0.7, 0.25))]).splitlines()
    assert first.endswith("1.00%")
    assert "60.0% +- 14.1% and open_clip 50.0% +- 0.0%" in lines[0]
    assert "50 " in _table(seed())
    assert "rounding alone" in _table(seed(control_losses=[1.0] * 100))


@pytest.mark.parametrize("model", LEARNING_RATES)
def test_the_recipe_is_the_demos_in_one_process(model):
    config = recipe({"train": "data/a", "heldout": "data/b"}, 50, 3, *settings_of(model))
    assert (config.model.name, config.train.max_steps, config.train.seed) == (model, 50, 3)
    assert config.cluster.num_workers == 1
    assert config.optimizer.learning_rate == LEARNING_RATES[model]

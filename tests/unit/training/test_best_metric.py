"""The metric of the best checkpoints is one that they will have; tests/world/test_found_early.py has more inputs."""

import pytest

from jobs.cli.config import load_config, recipe_names
from pipeline.errors import ConfigError
from training.best_metric import check_best_metric

EVALUATION = ("evaluation.retrieval_uri=data/heldout", "checkpoint.keep_best=2")


def check(*overrides: str) -> None:
    check_best_metric(load_config("debug_cpu", [*EVALUATION, *overrides]))


@pytest.mark.parametrize(("saved", "evaluated"), [(10, 10), (10, 5), (5, 10), (1, 7), (1000, 1)])
def test_checkpoints_and_evaluations_of_which_one_is_at_a_multiple_of_the_other_are_fine(saved, evaluated):
    check(f"checkpoint.every_steps={saved}", f"evaluation.every_steps={evaluated}")


@pytest.mark.parametrize(("saved", "evaluated"), [(5, 7), (10, 4), (1000, 300)])
def test_the_remedy_for_others_works(saved, evaluated):
    with pytest.raises(ConfigError, match=rf"e\.g\. checkpoint\.every_steps={evaluated}$"):
        check(f"checkpoint.every_steps={saved}", f"evaluation.every_steps={evaluated}")
    check(f"checkpoint.every_steps={evaluated}", f"evaluation.every_steps={evaluated}")


def test_bounds_of_figures_can_choose_too():
    check("evaluation.every_steps=10", "checkpoint.best_metric=evaluation_bounds/image_to_text_r5_low")


def test_a_metric_that_is_not_used_is_not_judged():
    check_best_metric(load_config("debug_cpu", ["checkpoint.best_metric=anything"]))
    for recipe in recipe_names():
        check_best_metric(load_config(recipe))

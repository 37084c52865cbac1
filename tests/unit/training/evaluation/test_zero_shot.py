"""A class is the mean of its prompts, and accuracy counts ties as misses."""

import pytest
import torch

from tests.support.runs import ALONE
from training.evaluation.zero_shot import build_classifier, count_right, prompts_of, zero_shot_figures


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_a_class_is_the_normalised_mean_of_its_prompts(batch_size):
    prompts = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [1.0, 0.0], "the dog": [1.0, 0.0]}
    classifier = build_classifier(
        lambda ids: ids,
        lambda texts: torch.tensor([prompts[text] for text in texts]),
        ["cat", "dog"],
        ["a {}", "the {c}"],
        ALONE,
        batch_size,
    )
    torch.testing.assert_close(classifier, torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))


def test_a_class_name_is_put_where_it_goes_as_it_is():
    assert prompts_of("cat {0}", ["a {}", "{c}, {c}", "{x} {}"]) == ["a cat {0}", "cat {0}, cat {0}", "{x} cat {0}"]
    assert prompts_of(r"\c{c}", ["a {} or {c}."]) == [r"a \c{c} or \c{c}."]
    assert prompts_of("{}", ["{c} {}"]) == ["{} {}"]


def test_accuracy_counts_the_first_k_and_ties_as_misses():
    images = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.2, 0.9], [0.5, 0.5, 0.0]])
    hits = count_right(images, torch.eye(3), torch.tensor([0, 1, 0]), (1, 2))
    assert hits.tolist() == [[1, 0, 0], [2, 1, 0]]
    figures = {figure.name: figure for figure in zero_shot_figures(hits, torch.tensor([2, 1, 0]))}
    assert figures["zero_shot_top1"].value == pytest.approx(1 / 3)
    assert figures["zero_shot_mean_per_class"].value == pytest.approx((1 / 2 + 0) / 2)
    assert (figures["zero_shot_top1"].chance, figures["zero_shot_top5"].chance) == (1 / 3, 1.0)


def test_a_model_that_has_diverged_is_never_right():
    broken = torch.full((30, 4), torch.nan)
    assert count_right(broken, torch.eye(4), torch.zeros(30, dtype=torch.int64), (1, 5)).sum() == 0

"""Metrics equal a brute-force reference, with ties, and do not depend on tiles."""

import pytest
import torch
import torch.nn.functional as F

from model.clip import build_clip
from training.config import EvaluationConfig, ZeroShotConfig
from training.distributed import World
from training.evaluation.retrieval import retrieval_metrics, retrieval_ranks
from training.evaluation.runner import evaluate
from training.evaluation.zero_shot import accuracy, build_classifier

ALONE = World(0, 1, torch.device("cpu"))


def brute_force_rank(scores: list[float], right: int) -> int:
    """How many others score at least as high as the right one."""
    return sum(score >= scores[right] for place, score in enumerate(scores) if place != right)


@pytest.mark.parametrize("tile_size", [1, 7, 1000])
@pytest.mark.parametrize("levels", [None, 3])
def test_ranks_equal_brute_force_on_random_and_on_tied_scores(tile_size, levels):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(40, 6, generator=generator), torch.randn(25, 6, generator=generator)
    if levels:
        queries, keys = queries.sign(), keys.sign()  # few distinct scores: many ties
    answers = torch.randint(0, 25, (40,), generator=generator)
    expected = [brute_force_rank(row, right) for row, right in zip((queries @ keys.T).tolist(), answers.tolist(), strict=True)]
    assert retrieval_ranks(queries, keys, answers, tile_size).tolist() == expected


def test_a_model_that_tells_nothing_apart_finds_nothing():
    same = F.normalize(torch.ones(30, 4), dim=-1)
    assert set(retrieval_metrics(same, same).values()) == {0.0}


def test_a_model_that_has_diverged_finds_nothing():
    broken = torch.full((30, 4), torch.nan)
    assert set(retrieval_metrics(broken, broken).values()) == {0.0}
    assert accuracy(broken, torch.eye(4), torch.zeros(30, dtype=torch.int64)) == 0.0


def test_a_perfect_model_finds_everything():
    features = torch.eye(30)
    assert set(retrieval_metrics(features, features).values()) == {1.0}


def test_recalls_count_the_ranks():
    images = torch.eye(12)
    texts = images.clone()
    texts[0] = images[1] + 0.5 * images[0]  # the first text is nearer to the second picture
    metrics = retrieval_metrics(images, texts)
    assert metrics["text_to_image_r1"] == pytest.approx(11 / 12)
    assert metrics["text_to_image_r5"] == 1.0


def test_a_class_is_the_normalised_mean_of_its_prompts():
    prompts = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [1.0, 0.0], "the dog": [1.0, 0.0]}
    classifier = build_classifier(
        lambda ids: ids,
        lambda texts: torch.tensor([prompts[text] for text in texts]),
        ["cat", "dog"],
        ["a {}", "the {}"],
    )
    torch.testing.assert_close(classifier, torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))


def test_accuracy_counts_the_first_k_and_ties_against_us():
    classifier = torch.eye(3)
    images = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.2, 0.9], [0.5, 0.5, 0.0]])
    labels = torch.tensor([0, 1, 0])
    assert accuracy(images, classifier, labels) == pytest.approx(1 / 3)
    assert accuracy(images, classifier, labels, k=2) == pytest.approx(1.0)


def test_a_data_set_is_evaluated_as_by_hand(data_set):
    torch.manual_seed(0)
    clip = build_clip("debug-vit").eval()
    config = EvaluationConfig(
        batch_size=10, retrieval_uri=data_set, zero_shot=ZeroShotConfig(uri=data_set, label_column="shape", templates=("{}",))
    )
    metrics = evaluate(clip, config, ALONE)
    larger = evaluate(clip, config.model_copy(update={"batch_size": 64}), ALONE)
    assert metrics == pytest.approx(larger)
    assert metrics["evaluation/zero_shot_chance"] == 0.25
    assert set(metrics) >= {"evaluation/image_to_text_r1", "evaluation/text_to_image_r10", "evaluation/zero_shot_top1"}


def test_a_template_without_a_place_is_refused():
    with pytest.raises(ValueError, match="has no place for the class name"):
        ZeroShotConfig(uri="x", label_column="y", templates=("a photo",))

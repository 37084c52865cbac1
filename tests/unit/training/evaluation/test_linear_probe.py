"""The linear probe is scikit-learn's classifier at the penalty that validates best."""

import pytest
import torch

from model.clip import build_clip
from tests.support.runs import ALONE
from training.evaluation.figures import wilson
from training.evaluation.linear_probe import DECADES, choose_decade, fit, probe_figures, validation_split


def separable(count: int, spread: float, seed: int):
    """Features (N, 8) around four centres, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    features = 3 * torch.eye(8)[labels] + spread * torch.randn(count, 8, generator=generator)
    return features.numpy(), labels.numpy()


def test_the_probe_separates_what_is_separable():
    figures = probe_figures(separable(80, 0.1, 0), separable(40, 0.1, 1), None, ALONE)
    assert [figure.value for figure in figures[:2]] == [1.0, 1.0]
    assert figures[0].low == pytest.approx(wilson(40, 40)[0])
    assert figures[0].chance == 0.25


def test_the_probe_is_scikit_learns_own_at_the_lambda_that_validates_best():
    from sklearn.linear_model import LogisticRegression

    train, test, validation = separable(60, 2.5, 0), separable(200, 2.5, 1), separable(100, 2.5, 2)
    top1, _, decade = probe_figures(train, test, validation, ALONE)
    both = [torch.cat([torch.as_tensor(one), torch.as_tensor(other)]) for one, other in zip(train, validation, strict=True)]
    direct = LogisticRegression(C=10.0**-decade.value, max_iter=1000).fit(*(one.numpy() for one in both))
    assert top1.value == direct.score(*test)
    assert 0.3 < top1.value < 1
    all_scores = {one: fit(*train, one).score(*validation) for one in (*DECADES, decade.value)}
    assert all_scores[decade.value] == max(all_scores.values())


def test_the_search_halves_the_interval_around_the_peak_to_an_eighth_of_a_decade():
    asked = []

    def score(decades):
        asked.extend(decades)
        return [-abs(one - 1.37) for one in decades]

    assert choose_decade(score) == 1.375
    assert asked[:7] == list(DECADES)
    assert len(asked) == 7 + 2 * 4
    assert choose_decade(lambda decades: [0.0] * len(decades)) == 6.0  # of equals the strongest penalty


def test_a_fifth_of_each_class_validates():
    labels = separable(40, 0.1, 0)[1]
    chosen = validation_split(labels)
    assert [int(chosen[labels == label].sum()) for label in range(4)] == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="no class has 5 samples"):
        validation_split(labels[:12])


def test_a_probe_on_features_that_are_nans_is_right_about_nothing():
    features, labels = separable(40, 0.1, 0)
    broken = features * float("nan")
    assert [figure.value for figure in probe_figures((broken, labels), (broken, labels), None, ALONE)] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_the_probe_sees_what_the_projection_is_applied_to(name):
    torch.manual_seed(0)
    clip = build_clip(name).eval()
    images = torch.randint(0, 256, (3, 3, clip.architecture.image_size_px, clip.architecture.image_size_px), dtype=torch.uint8)
    trunk = clip.encode_trunk(images)
    projected = trunk @ clip.visual.proj if name == "debug-vit" else clip.visual.attnpool.c_proj(trunk)
    torch.testing.assert_close(projected, clip.encode_image(images))

"""The linear probe: the accuracy of a linear classifier on frozen image features (paper, appendix A.3).

In: features of the image encoder before its projection (I_f of the paper's Figure 3), and labels. Out: `Figure`s.
As in the paper: scikit-learn's L-BFGS logistic regression, at most 1,000 iterations; the strength of the L2 penalty, lambda, is
chosen on validation data between 1e-6 and 1e6, in steps of 1/8 decade, by halving the interval around the peak; then the
classifier is fitted to both splits together. The ranks share the candidates of a sweep.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from training.distributed import World, failing_together, gather_objects
from training.evaluation.figures import Figure, mean_of_shares, share

MAX_ITERATIONS = 1000
DECADES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""log10(lambda) of the candidates that the search begins with."""
RESOLUTION = 1 / 8
VALIDATION_EVERY = 5
"""Every fifth sample of each class validates if no validation data are given."""
Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def fit(features: Features, labels: Labels, decade: float) -> Any:
    """Fits scikit-learn's classifier with lambda = 10 ** decade, on the sum of losses; its C is 1 / lambda."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is the paper's
        return LogisticRegression(C=10.0**-decade, max_iter=MAX_ITERATIONS).fit(features, labels)


def choose_decade(score: Callable[[Sequence[float]], list[float]]) -> float:
    """Returns the log10(lambda) with the highest score; among equals, the strongest penalty.

    Args:
        score: returns the validation accuracy of several candidates.
    """
    found: dict[float, float] = {}
    step, candidates = DECADES[1] - DECADES[0], list(DECADES)
    while True:
        found |= zip(candidates, score(candidates), strict=True)
        best = max(found, key=lambda decade: (found[decade], decade))
        if step <= RESOLUTION:
            return best
        step /= 2
        candidates = [one for one in (best - step, best + step) if DECADES[0] <= one <= DECADES[-1]]


def validation_split(labels: Labels) -> NDArray[np.bool_]:
    """Returns a mask of the samples that validate: every fifth of each class. Raises ConfigError if there are none."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]] = True
    if not chosen.any():
        raise ConfigError(
            f"evaluation.linear_probe.train_uri: no class has {VALIDATION_EVERY} samples, one of which could "
            "validate; use more data, or give validation_uri"
        )
    return chosen


def probe_figures(
    train: tuple[Features, Labels],
    test: tuple[Features, Labels],
    validation: tuple[Features, Labels] | None,
    world: World,
    alive: Callable[[], object] = lambda: None,
) -> list[Figure]:
    """Returns the accuracy on the test data, its mean over classes, and log10(lambda). Every rank calls it.

    The value at chance is that of always answering the class that is most frequent in training.

    Args:
        train, test, validation: features (N, D) and labels (N,) of all ranks. Without validation, a fifth of `train` validates.
        alive: called before each fit.
    """
    if not all(np.isfinite(features).all() for features, _ in (train, test, validation or test)):
        return _figures(np.full_like(test[1], -1), test[1], train[1])  # the model has diverged
    if validation is None:
        held = validation_split(train[1])
        train, validation = (train[0][~held], train[1][~held]), (train[0][held], train[1][held])

    def score(decades: Sequence[float]) -> list[float]:
        own = []
        with failing_together(world):
            for one in decades[world.rank :: world.world_size]:
                alive()
                own.append(float(fit(*train, one).score(*validation)))
        alive()
        shares = gather_objects(own, world)
        return [shares[place % world.world_size][place // world.world_size] for place in range(len(decades))]

    decade = choose_decade(score)
    both = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
    with failing_together(world):
        answers = fit(*both, decade).predict(test[0]) if world.is_main else None
    figures = _figures(gather_objects(answers, world)[0], test[1], both[1])
    return [*figures, Figure("linear_probe_log10_lambda", decade, None, None, None, len(validation[1]))]


def _figures(answers: Labels, right: Labels, learned: Labels) -> list[Figure]:
    classes = np.unique(np.concatenate([learned, right]))
    hits = [int(((answers == label) & (right == label)).sum()) for label in classes]
    counts = [int((right == label).sum()) for label in classes]
    commonest = np.bincount(learned).argmax()
    chance = float((right == commonest).mean())
    return [
        share("linear_probe_top1", sum(hits), len(right), chance),
        mean_of_shares("linear_probe_mean_per_class", hits, counts, 1 / len(classes)),
    ]

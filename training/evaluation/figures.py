"""Figures of an evaluation, each with its value at chance and a 95% confidence interval.

In: counts of right answers, or ranks. Out: `Figure`s, a table of them, and the flat dictionary that metrics.jsonl and W&B hold:
`evaluation/NAME`, and separately `evaluation_bounds/NAME_{low,high,chance}`, and `evaluation_notes/NAME` for figures that rest
on a guess, or depend on more than the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z_95 = 1.959963984540054
"""The 97.5% quantile of the normal distribution."""
VALUES, BOUNDS, NOTES = "evaluation/", "evaluation_bounds/", "evaluation_notes/"


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        chance: the value that random answers would get; None if the number is not a result.
        low, high: a 95% confidence interval, for queries that are a sample of all possible ones.
        num_queries: number of queries.
        notes: what it rests on besides the model, a sentence each: guesses about the data, answers that cannot be told apart.
    """

    name: str
    value: float
    chance: float | None
    low: float | None
    high: float | None
    num_queries: int
    notes: tuple[str, ...] = ()


def share(name: str, hits: int, num_queries: int, chance: float) -> Figure:
    """Returns a share of right answers, with Wilson's interval."""
    return Figure(name, hits / num_queries, chance, *wilson(hits, num_queries), num_queries)


def wilson(hits: float, num_queries: int) -> tuple[float, float]:
    """Returns Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927): it stays in [0, 1] and is valid at 0 and 1."""
    p, n = hits / num_queries, num_queries
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))  # rounding must not exclude the share itself


def mean_of_shares(name: str, hits: Sequence[int], counts: Sequence[int], chance: float) -> Figure:
    """Returns the mean over classes of each one's share of right answers, over the classes that have queries.

    The interval combines the classes' Wilson intervals (MOVER: Zou and Donner, Statistics in Medicine 27, 2008), so a class
    with two images makes it as wide as it should be.
    """
    classes = [(hit, count) for hit, count in zip(hits, counts, strict=True) if count]
    shares = [hit / count for hit, count in classes]
    bounds = [wilson(hit, count) for hit, count in classes]
    mean = sum(shares) / len(shares)
    below = math.sqrt(sum((p - low) ** 2 for p, (low, _) in zip(shares, bounds, strict=True))) / len(shares)
    above = math.sqrt(sum((high - p) ** 2 for p, (_, high) in zip(shares, bounds, strict=True))) / len(shares)
    return Figure(name, mean, chance, max(0.0, mean - below), min(1.0, mean + above), sum(counts))


def median(name: str, sorted_ranks: Sequence[int], chance: float) -> Figure:
    """Returns the median of ranks that begin at 1, with its 95% interval, which lies between two of the ranks.

    The number of values below the true median is binomial(n, 1/2), whatever their distribution.
    """
    n = len(sorted_ranks)
    middle = (sorted_ranks[(n - 1) // 2] + sorted_ranks[n // 2]) / 2
    place = max(1, _order_statistic(n))
    return Figure(name, middle, chance, float(sorted_ranks[place - 1]), float(sorted_ranks[n - place]), n)


def _order_statistic(n: int) -> int:
    """Returns the largest l with P(binomial(n, 1/2) < l) <= 2.5%; 0 for fewer than six values."""
    import torch

    k = torch.arange(n // 2 + 1, dtype=torch.float64)
    size = torch.tensor(n + 1.0, dtype=torch.float64)
    chances = (torch.lgamma(size) - torch.lgamma(k + 1) - torch.lgamma(size - k) - n * math.log(2)).exp()
    return int((chances.cumsum(0) <= 0.025).sum())


def flatten(figures: Iterable[Figure]) -> dict[str, Any]:
    """Returns figures as a row of metrics.jsonl holds them: numbers, and the notes as text."""
    row: dict[str, Any] = {}
    for figure in figures:
        row[f"{VALUES}{figure.name}"] = figure.value
        for bound in ("low", "high", "chance"):
            if getattr(figure, bound) is not None:
                row[f"{BOUNDS}{figure.name}_{bound}"] = getattr(figure, bound)
        if figure.notes:
            row[f"{NOTES}{figure.name}"] = " ".join("; ".join(figure.notes).split())
    return row


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns NAME -> value of a row that `flatten` made, without the bounds and notes."""
    return {name.removeprefix(VALUES): value for name, value in metrics.items() if name.startswith(VALUES)}


def notes_of(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns note -> names of the figures that it is about, of a row that `flatten` made."""
    found: dict[str, list[str]] = {}
    for name, note in metrics.items():
        if name.startswith(NOTES):
            found.setdefault(note, []).append(name.removeprefix(NOTES))
    return found


def table(metrics: Mapping[str, Any]) -> str:
    """Formats such a row for people, one figure per line; a star marks figures that a note below is about."""
    lines = [f"{'':32} {'':6}  {'chance':>10}   95% interval"]
    for name, value in headline(metrics).items():
        line = f"{name:32} {value:.4f}"
        if f"{BOUNDS}{name}_low" in metrics:
            low, high, chance = (metrics[f"{BOUNDS}{name}_{bound}"] for bound in ("low", "high", "chance"))
            line = f"{line:39}  {chance:10.4f}   {low:.4f} to {high:.4f}"
        lines.append(f"{line} *" if f"{NOTES}{name}" in metrics else line)
    return "\n".join([*lines, *(f"* {', '.join(names)}: {note}" for note, names in notes_of(metrics).items())])

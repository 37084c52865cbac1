"""Figures, the aims that they are judged by, and the table of both.

An aim applies to the cards that it names: a gaming card cannot miss the pairs per second of an H100.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ANYWHERE, ON_CUDA, ON_HOPPER = "", r"^cuda", r"H100|H200"
"""Values of `Aim.on`."""
Status = Literal["running", "done", "skipped", "failed", "timed out", "died", "not run"]
UNFINISHED = ("failed", "timed out", "died")


class SkipError(Exception):
    """Raised by a section that cannot run on this machine, with the reason."""


@dataclass(frozen=True)
class Aim:
    """A bound on a figure.

    Attributes:
        on: pattern of the cards that it applies to.
    """

    least: float | None = None
    most: float | None = None
    on: str = ANYWHERE

    def is_met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:,g} to {self.most:,g}"
        return f">= {self.least:,g}" if self.least is not None else f"<= {self.most:,g}"


@dataclass(frozen=True)
class Figure:
    """A measured value under its name; text for what cannot be compared."""

    name: str
    value: float | str
    unit: str = ""
    aim: Aim | None = None

    def verdict(self, card: str) -> Literal["", "met", "missed", "not judged"]:
        """`not judged`: the aim is for other cards."""
        if self.aim is None:
            return ""
        if not re.search(self.aim.on, card):
            return "not judged"
        return "met" if not isinstance(self.value, str) and self.aim.is_met(self.value) else "missed"

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return self.value
        whole = abs(self.value) >= 100 or float(self.value).is_integer()
        return f"{self.value:,.0f}" if whole else f"{self.value:,.4g}"


@dataclass
class Outcome:
    """The end of one section, or its state so far.

    Attributes:
        card: as `Scale.card`.
        reason: why it was skipped, failed or ended.
        log: last lines of its output, if it did not end well.
    """

    section: str
    status: Status
    card: str = ""
    tiny: bool = False
    seconds: float = 0.0
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)
    traceback: str = ""
    log: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it, with the verdict of each figure."""
        rows = [asdict(one) | {"verdict": one.verdict(self.card)} for one in self.figures]
        return asdict(self) | {"figures": rows}

    @staticmethod
    def from_json(row: dict[str, Any]) -> Outcome:
        figures = []
        for one in row["figures"]:
            aim = None if one["aim"] is None else Aim(**one["aim"])
            figures.append(Figure(one["name"], one["value"], one["unit"], aim))
        return Outcome(**row | {"figures": figures})


def misses(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each aim that was missed and for each section that did not end."""
    lines = []
    for outcome in outcomes:
        if outcome.status in UNFINISHED:
            lines.append(f"{outcome.section}: {outcome.status}: {outcome.reason}")
        for figure in outcome.figures:
            if figure.verdict(outcome.card) == "missed":
                lines.append(f"{outcome.section}: {figure.name} = {figure} {figure.unit}, aim {figure.aim}".replace(" ,", ","))
    return lines


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table of all figures, then what missed its aim."""
    rows = [("section", "figure", "value", "aim", "verdict"), ("---", "---", "---:", "---", "---")]
    for outcome in outcomes:
        for figure in outcome.figures:
            aim = "" if figure.aim is None else str(figure.aim)
            value = f"{figure} {figure.unit}".strip()
            rows.append((outcome.section, figure.name, value, aim, figure.verdict(outcome.card)))
        if outcome.status != "done":
            rows.append((outcome.section, outcome.reason, outcome.status, "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows]
    missed = misses(outcomes)
    ending = ["missed:", *(f"- {line}" for line in missed)] if missed else ["no aim was missed"]
    return "\n".join([*lines, "", *ending])

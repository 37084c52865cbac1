"""The names of the figures that a configured evaluation gives, known before it runs, and which direction is better.

In: `evaluation.*`. Out: names as in metrics.jsonl. A test compares them with what `training.evaluation.runner.measure` gives.
"""

from __future__ import annotations

from typing import Literal

from training.config import EvaluationConfig
from training.evaluation.figures import BOUNDS, VALUES

Direction = Literal["highest", "lowest"]
_RETRIEVAL: dict[str, Direction] = {
    f"{way}_{what}": "lowest" if what == "median_rank" else "highest"
    for way in ("image_to_text", "text_to_image")
    for what in ("r1", "r5", "r10", "median_rank")
}
_ZERO_SHOT: dict[str, Direction] = {f"zero_shot_{what}": "highest" for what in ("top1", "top5", "mean_per_class")}
_LINEAR_PROBE: dict[str, Direction] = {f"linear_probe_{what}": "highest" for what in ("top1", "mean_per_class")}
ALL: dict[str, Direction] = _RETRIEVAL | _ZERO_SHOT | _LINEAR_PROBE
"""Every figure that is a result, by name; zero_shot_chance and linear_probe_log10_lambda are none."""


def figure_directions(config: EvaluationConfig) -> dict[str, Direction]:
    """Returns the metrics of a configured evaluation that compare models, and the direction in which each is better."""
    found: dict[str, Direction] = {}
    if config.retrieval_uri is not None:
        found |= _RETRIEVAL
    if config.zero_shot is not None:
        found |= _ZERO_SHOT
    if config.linear_probe is not None:
        found |= _LINEAR_PROBE
    bounds = {f"{BOUNDS}{name}_{bound}": better for name, better in found.items() for bound in ("low", "high")}
    return {f"{VALUES}{name}": better for name, better in found.items()} | bounds


def asks_for_something(config: EvaluationConfig) -> bool:
    """Returns whether anything is configured to be measured."""
    return config.retrieval_uri is not None or config.zero_shot is not None or config.linear_probe is not None

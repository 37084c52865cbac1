"""Checks, while a run is planned, that its checkpoints will have the metric by which the best of them are kept.

In: the configuration. Out: nothing, or a ConfigError. A checkpoint has the metrics of its own step alone: one without the
metric is never among the best, and is removed like any other.
"""

from __future__ import annotations

import difflib
import math

from pipeline.errors import ConfigError
from training.config import TrainingConfig
from training.evaluation.figure_names import Direction, asks_for_something, figure_directions

LOSS = "loss"


def check_best_metric(config: TrainingConfig) -> None:
    """Raises ConfigError if `checkpoint.keep_best` could keep nothing, or the wrong checkpoints."""
    checkpoint = config.checkpoint
    if not checkpoint.keep_best:
        return
    directions: dict[str, Direction] = {LOSS: "lowest", **figure_directions(config.evaluation)}
    if checkpoint.best_metric not in directions:
        raise ConfigError(_unknown(config, list(directions)))
    better = directions[checkpoint.best_metric]
    if checkpoint.best_is != better:
        raise ConfigError(
            f"checkpoint.best_is={checkpoint.best_is}: of checkpoint.best_metric={checkpoint.best_metric} the {better} "
            f"is best; set checkpoint.best_is={better}"
        )
    _check_steps(config)


def _unknown(config: TrainingConfig, names: list[str]) -> str:
    metric = config.checkpoint.best_metric
    subject = f"checkpoint.best_metric={metric} with checkpoint.keep_best={config.checkpoint.keep_best}"
    near = difflib.get_close_matches(metric, names, 1, 0.75)
    meant = next((name for name in names if name.rpartition("/")[2] == metric), near[0] if near else "")
    if meant:
        return f"{subject}: no step has that metric; did you mean {meant}?"
    shown = ", ".join(name for name in names if not name.startswith("evaluation_bounds/"))
    missing = "" if asks_for_something(config.evaluation) else ", or set evaluation.retrieval_uri, zero_shot or linear_probe"
    return f"{subject}: no step of this run will have that metric; use one of {shown}{missing}, or checkpoint.keep_best=0"


def _check_steps(config: TrainingConfig) -> None:
    """Checks that either every checkpoint has the metric, or every value of the metric has a checkpoint."""
    checkpoint = config.checkpoint
    if checkpoint.best_metric == LOSS:
        key, measured = "train.log_every_steps", config.train.log_every_steps
    else:
        key, every = "evaluation.every_steps", config.evaluation.every_steps
        if every is None:
            raise ConfigError(
                f"checkpoint.keep_best={checkpoint.keep_best}: evaluation.every_steps is not set, so only the last checkpoint "
                f"would have {checkpoint.best_metric}; set evaluation.every_steps={checkpoint.every_steps or 1000}, or "
                "checkpoint.keep_best=0"
            )
        measured = every
    saved = checkpoint.every_steps
    if saved is None:
        raise ConfigError(
            f"checkpoint.keep_best={checkpoint.keep_best}: checkpoint.every_steps=null saves by time alone, at steps that have "
            f"no {checkpoint.best_metric}; set checkpoint.every_steps={measured}"
        )
    if saved % measured and measured % saved:
        raise ConfigError(
            f"checkpoint.keep_best={checkpoint.keep_best}: checkpoint.every_steps={saved} and {key}={measured} meet only every "
            f"{math.lcm(saved, measured)} steps, and other checkpoints have no {checkpoint.best_metric}; "
            f"set one to a multiple of the other, e.g. checkpoint.every_steps={measured}"
        )

"""Finds keys that were typed and cannot have an effect, because of the values of other keys or because of the job.

In: the configuration, and the keys that the command line sets. Out: one line for each of them: the key, why it has no effect,
and what to type. Keys of a recipe are not judged: it may hold settings for later, and that of a stored run holds all keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from training.config import TrainingConfig


@dataclass(frozen=True)
class _Rule:
    """Keys that have an effect only under a condition.

    Attributes:
        keys: each a whole key, or a section with all of its keys.
        effective: the condition.
        remedy: what to type; begins with why the key has no effect.
        jobs: the jobs that the rule is for; empty: all.
    """

    keys: tuple[str, ...]
    effective: Callable[[TrainingConfig], bool]
    remedy: str
    jobs: tuple[str, ...] = ()


_TRAIN = ("train", "demo")
_RULES = (
    _Rule(
        ("checkpoint.best_metric", "checkpoint.best_is"),
        lambda config: config.checkpoint.keep_best > 0,
        "checkpoint.keep_best=0 keeps no best checkpoints; set checkpoint.keep_best=1",
    ),
    _Rule(("data.version",), lambda config: not config.data.mixture, "data.mixture gives each of its parts a version"),
    _Rule(
        ("data.max_skipped_samples",),
        lambda config: config.data.on_damage == "skip",
        "data.on_damage=fail skips none; set data.on_damage=skip",
    ),
    _Rule(
        ("data.cache_bytes",),
        lambda config: bool(config.data.cache_dir),
        "there is no cache; set data.cache_dir to a local folder",
    ),
    _Rule(
        ("train.max_skipped_steps",),
        lambda config: config.train.on_non_finite == "skip",
        "train.on_non_finite=fail skips none; set train.on_non_finite=skip",
    ),
    _Rule(
        ("model.allow_torchscript",),
        lambda config: bool(config.model.weights),
        "no weights are loaded; set model.weights",
        _TRAIN,
    ),
    _Rule(
        ("cluster.resize_every_s",),
        lambda config: config.cluster.min_workers < config.cluster.max_workers,
        "the number of workers is fixed; set cluster.num_workers=[MIN,MAX]",
        _TRAIN,
    ),
    _Rule(
        ("cluster.use_gpu",),
        lambda config: not (config.cluster.use_gpu is True and config.train.device == "cpu"),
        "train.device=cpu would leave the GPUs idle; set train.device=auto",
        _TRAIN,
    ),
    _Rule(
        ("tracking.wandb_project", "tracking.wandb_entity"),
        lambda config: config.tracking.wandb_mode != "disabled",
        "W&B is off; set tracking.wandb_mode=offline or online",
    ),
    _Rule(
        ("evaluation.retrieval_captions",),
        lambda config: config.evaluation.retrieval_uri is not None,
        "no retrieval is measured; set evaluation.retrieval_uri",
        _TRAIN,
    ),
    _Rule(
        ("evaluation.batch_size", "evaluation.on_failure"),
        lambda config: _measures(config),
        "nothing is measured; set evaluation.retrieval_uri, zero_shot or linear_probe",
        _TRAIN,
    ),
    _Rule(
        ("evaluation.every_steps", "evaluation.on_failure"),
        lambda _config: False,
        "it is about evaluations during training; omit it",
        ("evaluate", "average"),
    ),
)


def ineffective_keys(config: TrainingConfig, typed: Collection[str], job: str | None) -> Iterator[str]:
    """Yields a line for each typed key of a job that cannot have an effect."""
    for rule in _RULES:
        if rule.jobs and job not in rule.jobs:
            continue
        for key in rule.keys:
            if key in typed and not rule.effective(config):
                yield f"{key}: has no effect: {rule.remedy}"


def _measures(config: TrainingConfig) -> bool:
    evaluation = config.evaluation
    return evaluation.retrieval_uri is not None or evaluation.zero_shot is not None or evaluation.linear_probe is not None

"""Table of the jobs and of the keys that each uses: for its `--help`, and to refuse other sections on its command line.

A recipe may hold any section: a stored run's config.yaml holds all of them, and every job reads it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

_ROOM = (__package__ or "").rpartition(".")[0]
"""The package of the commands: `jobs` in a checkout, `rayclip.jobs` where RayCLIP is installed (setup.py)."""


@dataclass(frozen=True)
class JobKeys:
    """The keys of one job.

    Attributes:
        uses: sections, or single keys of sections that the job otherwise ignores.
        most_used: the keys that the first page of its help shows; empty: all of them.
    """

    uses: tuple[str, ...]
    most_used: tuple[str, ...] = ()

    @property
    def sections(self) -> tuple[str, ...]:
        """Top-level sections that the command line may set."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.uses))

    def select(self, keys: Iterable[str]) -> list[str]:
        """The keys that the job uses, in the job's order of sections."""
        keys = list(keys)
        return [key for name in self.uses for key in keys if key == name or key.startswith(f"{name}.")]


_RUN = ("run.name", "run.dir")
_RUNTIME = ("cluster.runtime_env",)
_EVALUATION = (
    "evaluation.retrieval_uri",
    "evaluation.zero_shot.uri",
    "evaluation.zero_shot.label_column",
    "evaluation.zero_shot.templates",
    "evaluation.linear_probe.train_uri",
    "evaluation.linear_probe.test_uri",
)
_TRAINING = ("run", "model", "data", "train", "optimizer", "checkpoint", "evaluation", "tracking", "cluster")

JOBS: dict[str, JobKeys] = {
    "train": JobKeys(
        _TRAINING,
        (
            "data.uri",
            "model.name",
            "model.weights",
            *_RUN,
            "train.global_batch_size",
            "train.micro_batch_size",
            "train.num_epochs",
            "train.max_steps",
            "train.precision",
            "optimizer.learning_rate",
            "optimizer.warmup_steps",
            "checkpoint.every_steps",
            "evaluation.every_steps",
            "evaluation.retrieval_uri",
            "cluster.num_workers",
            "tracking.wandb_mode",
        ),
    ),
    "ingest": JobKeys(
        ("ingest", "tracking", *_RUNTIME),
        (
            "ingest.input",
            "ingest.output",
            "ingest.url_column",
            "ingest.caption_column",
            "ingest.num_workers",
            "ingest.image.size_px",
            "ingest.image.resize_mode",
            "ingest.image.format",
            "ingest.image.quality",
            "ingest.image.min_side_px",
            "ingest.fetch.concurrency",
            "ingest.fetch.host_concurrency",
            "ingest.fetch.total_timeout_s",
            "ingest.fetch.attempts",
        ),
    ),
    "evaluate": JobKeys(
        ("evaluation", *_RUN, "model", "train.device", "train.precision", "cluster"),
        (*_RUN, *_EVALUATION, "evaluation.batch_size", "model.name", "train.device", "cluster.num_workers"),
    ),
    "average": JobKeys(
        ("evaluation", *_RUN, "train.device", *_RUNTIME),
        (*_RUN, *_EVALUATION, "evaluation.batch_size", "train.device"),
    ),
    "export": JobKeys((*_RUN, "model", *_RUNTIME)),
    "embed": JobKeys(
        (
            "embed",
            *_RUN,
            "model",
            "data.captions",
            "data.on_damage",
            "data.max_skipped_samples",
            "train.precision",
            *_RUNTIME,
        ),
        ("embed.data", "embed.output", *_RUN, "embed.batch_size", "embed.num_workers", "embed.use_gpu", "data.captions"),
    ),
    "search": JobKeys((*_RUN, "model.name", "train.device", "train.precision", *_RUNTIME)),
    "curate": JobKeys(("curate", "ingest.shard_size_bytes", *_RUNTIME)),
    "index": JobKeys(("index", *_RUNTIME)),
    "report": JobKeys((*_RUN, *_RUNTIME)),
    "demo": JobKeys(
        (*_TRAINING, "ingest"),
        (*_RUN, "train.max_steps", "train.global_batch_size", "cluster.num_workers", "tracking.wandb_mode"),
    ),
}
"""Job (jobs/NAME.py) -> its keys. Every job reads `cluster.runtime_env`: its variables are the job's environment."""


def import_job(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"{_ROOM}.{name}")


def shown(name: str) -> str:
    """A command as messages name it."""
    return f"jobs/{name}.py" if _ROOM == "jobs" else f"rayclip {name}"


def users_of(keys: Sequence[str]) -> dict[str, list[str]]:
    """The jobs that use any of the keys, each with those that it uses."""
    used = ((shown(name), job.select(keys)) for name, job in JOBS.items())
    return {job: names for job, names in used if names}


def refusal(job: str, section: str) -> str:
    """The reason why a job's command line refuses a section; empty if it is allowed."""
    keys = JOBS[job]
    users = [shown(name) for name, other in JOBS.items() if section in other.sections]
    if section in keys.sections or not users:
        return ""
    return (
        f"{shown(job)} does not use the section {section} (used by {', '.join(users)}); "
        f"set keys of {', '.join(keys.sections)}, or keep it in a recipe"
    )

"""W&B's own environment variables, where the configuration is silent.

In: `tracking.*` and the environment. Out: `tracking.*` with what the environment says; the variables that a job passes on to
its workers; and lines about those that a run cannot follow. The API key is never passed on: each node has its own.

Precedence, later wins:
    1. the defaults: offline, project rayclip
    2. WANDB_* variables
    3. `tracking.*`, in the recipe or on the command line
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.storage.url_credentials import has_userinfo, without_userinfo
from training.config import TrackingConfig

Mode = Literal["offline", "online", "disabled"]

MODES: dict[str, Mode] = {
    "offline": "offline",
    "dryrun": "offline",
    "online": "online",
    "run": "online",
    "disabled": "disabled",
}
"""WANDB_MODE -> mode; `dryrun` and `run` are W&B's former words."""
TRUE = ("1", "true", "yes", "on")
MACHINE = ("WANDB_DIR",)
"""Places on one machine: they reach the workers of a job, but are not sent with a submission."""
SETTINGS = (
    "WANDB_BASE_URL",
    "WANDB_DISABLED",
    "WANDB_ENTITY",
    "WANDB_JOB_TYPE",
    "WANDB_MODE",
    "WANDB_NAME",
    "WANDB_NOTES",
    "WANDB_PROJECT",
    "WANDB_RUN_GROUP",
    "WANDB_TAGS",
)
"""Variables that a submission sends and a job passes on."""
UNUSABLE = {
    "WANDB_RUN_ID": "a run has an id of its own, in its run.json, so that runs of one shell do not become one",
    "WANDB_RESUME": "a run resumes by itself, with each step once",
    "WANDB_RESUME_FROM": "a run resumes by itself, with each step once",
    "WANDB_FORK_FROM": "a run resumes by itself, with each step once; run.resume starts a new one from a checkpoint",
    "WANDB_SWEEP_ID": "W&B would give each start of a run another id; give each trial a run.name and WANDB_RUN_GROUP",
    "WANDB_LAUNCH": "W&B would give each start of a run another id",
}
"""Variables that would break "one run, no step twice" -> why."""


def with_environment(tracking: TrackingConfig, environment: Mapping[str, str]) -> TrackingConfig:
    """Returns `tracking.*` with every value set.

    Raises:
        ConfigError: WANDB_MODE is no mode of a run, or WANDB_BASE_URL holds a password.
    """
    said = {name: environment.get(name, "").strip() for name in SETTINGS}
    if has_userinfo(said["WANDB_BASE_URL"]):
        raise ConfigError(
            f"WANDB_BASE_URL={without_userinfo(said['WANDB_BASE_URL'])}: an address must not hold a user name or a password, "
            "since logs show it; remove them, and set WANDB_API_KEY"
        )
    return tracking.model_copy(
        update={
            "wandb_mode": tracking.wandb_mode or _mode(said),
            "wandb_project": tracking.wandb_project or said["WANDB_PROJECT"] or "rayclip",
            "wandb_entity": tracking.wandb_entity or said["WANDB_ENTITY"] or None,
        }
    )


def passed_on(environment: Mapping[str, str], names: tuple[str, ...] = (*SETTINGS, *MACHINE, *UNUSABLE)) -> dict[str, str]:
    """The variables for the workers of a job, or, with SETTINGS, for a submission."""
    return {name: environment[name] for name in names if environment.get(name, "").strip()}


def tidy(environment: MutableMapping[str, str]) -> list[str]:
    """Removes what W&B would fail on, before it reads the environment: empty variables, empty tags, and UNUSABLE ones.

    Returns:
        One line for each of the last.
    """
    if "WANDB_TAGS" in environment:
        tags = [tag.strip() for tag in environment["WANDB_TAGS"].split(",")]
        environment["WANDB_TAGS"] = ",".join(dict.fromkeys(tag for tag in tags if tag))
    for name in (*SETTINGS, *MACHINE, *UNUSABLE, "WANDB_API_KEY"):
        if name in environment and not environment[name].strip():
            del environment[name]
    return [f"{name}={environment.pop(name)}: is not used: {why}" for name, why in UNUSABLE.items() if name in environment]


def _mode(said: Mapping[str, str]) -> Mode:
    if said["WANDB_DISABLED"].lower() in TRUE:
        return "disabled"
    if not said["WANDB_MODE"]:
        return "offline"
    if said["WANDB_MODE"] not in MODES:
        raise ConfigError(
            f"WANDB_MODE={said['WANDB_MODE']}: is no mode of a run; set it to online, offline or disabled, or set "
            "tracking.wandb_mode"
        )
    return MODES[said["WANDB_MODE"]]

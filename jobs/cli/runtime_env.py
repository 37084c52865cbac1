"""Checks `cluster.runtime_env` and merges it with the runtime environment of a submission.

In: the mapping of a recipe. Out: its problems; and the part of it that the submission does not set itself, because Ray refuses
a field that is set twice.

Precedence, later wins:
    1. the environment of the nodes
    2. the recipe and its overrides
    3. the submission (`ray job submit`); jobs/submit.py passes on the recipe's
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import ConfigError

KEY = "cluster.runtime_env"
FIELDS = ("env_vars", "pip", "uv", "conda", "py_modules", "py_executable", "working_dir", "excludes", "config")
"""Accepted fields of Ray's runtime_env. The deploy files set container images, jobs/cli/command_line.py the worker hook."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray passes the runtime environment of a submission to the job's process."""
SECRET_WORD = re.compile(r"(^|_)(KEYS?|TOKENS?|PASS|PWD)(_|$)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY")
PLACE = re.compile(r"_(FILE|PATH|DIR)$")
"""Names with these endings hold the place of a secret, not the secret."""
ADDRESS_WITH_PASSWORD = re.compile(r"https?://[^/?#\s]*@|://[^/?#\s:@]*:[^/?#\s@]+@")
"""Over HTTP, a user name alone may be a token; over SSH it is only a name."""
NO_SECRETS = "a recipe is stored with every run; put secrets into the nodes' environment"


def secret_problems(runtime_env: Any) -> list[str]:
    """One line per entry that looks like a secret, without its value."""
    if not isinstance(runtime_env, Mapping):
        return []
    variables = runtime_env["env_vars"] if "env_vars" in runtime_env else {}
    names = [name for name in variables if is_secret_name(str(name))] if isinstance(variables, Mapping) else []
    fields = [field for field, value in runtime_env.items() if any(map(ADDRESS_WITH_PASSWORD.search, _texts(value)))]
    problems = [f"{KEY}.env_vars.{name}: {NO_SECRETS}" for name in names]
    return problems + [f"{KEY}.{field}: holds an address with a password; {NO_SECRETS}" for field in fields]


def problems(runtime_env: Mapping[str, Any]) -> list[str]:
    """One line per problem that is found without Ray."""
    found = []
    for field in runtime_env:
        if field not in FIELDS:
            close = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"did you mean {KEY}.{close[0]}?" if close else f"it takes {', '.join(FIELDS)}"
            found.append(f"{KEY}.{field}: unknown key; {hint}")
    variables = runtime_env["env_vars"] if "env_vars" in runtime_env else {}
    if not isinstance(variables, Mapping):
        return [
            *found,
            f"{KEY}.env_vars: is a {type(variables).__name__}, not a mapping of names to strings; use env_vars: {{NAME: text}}",
        ]
    for name, value in variables.items():
        if not isinstance(value, str):
            found.append(f"{KEY}.env_vars.{name}: is a {type(value).__name__}, not a string; quote it")
    return found


def check(runtime_env: Mapping[str, Any]) -> None:
    """Validates it with Ray. Raises ConfigError if Ray rejects it."""
    from ray.runtime_env import RuntimeEnv

    try:
        RuntimeEnv(**runtime_env)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: {' '.join(str(error).split())}; correct it in the recipe") from None


def variables_of(runtime_env: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables for the job's own process: those of the recipe that the submission does not set."""
    recipe = _beside_the_submission(runtime_env)
    return dict(recipe["env_vars"]) if "env_vars" in recipe else {}


def for_ray_init(runtime_env: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime environment for `ray.init`.

    Args:
        ours: settings of every job; variables of the recipe and of the submission take precedence.

    Raises:
        ConfigError: Ray rejects it.
    """
    recipe = _beside_the_submission(runtime_env)
    check(_submission() | recipe)
    return dict(ours) | recipe | {"env_vars": _beside_the_submission(ours)["env_vars"] | variables_of(runtime_env)}


def _submission() -> dict[str, Any]:
    """The runtime environment that this process was submitted with; empty if it was not submitted."""
    text = os.environ.get(JOB_CONFIG)
    return dict(json.loads(text).get("runtime_env") or {}) if text else {}


def _beside_the_submission(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    stated = _submission()
    result = {field: value for field, value in runtime_env.items() if field not in stated or field == "env_vars"}
    if "env_vars" in result and "env_vars" in stated:
        result["env_vars"] = {name: value for name, value in result["env_vars"].items() if name not in stated["env_vars"]}
    return result


def is_secret_name(name: str) -> bool:
    """Returns True if a variable of this name holds a secret, rather than its place."""
    return SECRET_WORD.search(name.upper()) is not None and PLACE.search(name.upper()) is None


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node

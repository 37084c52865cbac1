"""`cluster.runtime_env`: what Ray sets up for the processes of a job, as its `runtime_env` takes it.

In: the mapping of a recipe. Out: what is wrong with it; and of it what a submission of the job does not state itself, because
Ray refuses a runtime environment that is given twice.

Precedence, later wins:
    1. the environment of the nodes
    2. the recipe and its overrides
    3. what was given to `ray job submit`; jobs/submit.py gives it the recipe's
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
"""Of Ray's. Images are the deploy files' business, and the hook of worker processes is jobs/cli/command_line.py's."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray leaves the runtime environment of a submission for the job's own process."""
SECRET_WORD = re.compile(r"(^|_)(KEYS?|TOKENS?|PASS|PWD)(_|$)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY")
PLACE = re.compile(r"_(FILE|PATH|DIR)$")
"""A name that ends so says where a secret lies, which is none."""
ADDRESS_WITH_PASSWORD = re.compile(r"https?://[^/?#\s]*@|://[^/?#\s:@]*:[^/?#\s@]+@")
"""Over HTTP a user name alone may be a token; over SSH it is a name."""
NO_SECRETS = "a recipe is stored with every run; put secrets into the nodes' environment"


def secret_problems(runtime_env: Any) -> list[str]:
    """Where it holds what looks like a secret, one line each, which do not show it."""
    if not isinstance(runtime_env, Mapping):
        return []
    variables = runtime_env["env_vars"] if "env_vars" in runtime_env else {}
    names = [name for name in variables if _is_secret(str(name))] if isinstance(variables, Mapping) else []
    fields = [field for field, value in runtime_env.items() if any(map(ADDRESS_WITH_PASSWORD.search, _texts(value)))]
    problems = [f"{KEY}.env_vars.{name}: {NO_SECRETS}" for name in names]
    return problems + [f"{KEY}.{field}: holds an address with a password; {NO_SECRETS}" for field in fields]


def problems(runtime_env: Mapping[str, Any]) -> list[str]:
    """What can be said against it without Ray, one line each."""
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
            f"{KEY}.env_vars: is a {type(variables).__name__}, no mapping of names to texts; write env_vars: {{NAME: text}}",
        ]
    for name, value in variables.items():
        if not isinstance(value, str):
            found.append(f"{KEY}.env_vars.{name}: is a {type(value).__name__}, and a variable's value is a text; quote it")
    return found


def check(runtime_env: Mapping[str, Any]) -> None:
    """Asks Ray itself. Raises ConfigError where it does not take it."""
    from ray.runtime_env import RuntimeEnv

    try:
        RuntimeEnv(**runtime_env)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: {' '.join(str(error).split())}; mend it in the recipe") from None


def variables_of(runtime_env: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables that are not the submission's to say; for the job's own process."""
    recipe = _beside_the_submission(runtime_env)
    return dict(recipe["env_vars"]) if "env_vars" in recipe else {}


def for_ray_init(runtime_env: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """What `ray.init` is to be given.

    Args:
        ours: what every job of ours needs; its variables give way to the recipe's and the submission's.

    Raises:
        ConfigError: Ray does not take it.
    """
    recipe = _beside_the_submission(runtime_env)
    check(_submission() | recipe)
    return dict(ours) | recipe | {"env_vars": _beside_the_submission(ours)["env_vars"] | variables_of(runtime_env)}


def _submission() -> dict[str, Any]:
    """The runtime environment that this process was submitted with; empty where it was not."""
    text = os.environ.get(JOB_CONFIG)
    return dict(json.loads(text).get("runtime_env") or {}) if text else {}


def _beside_the_submission(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    stated = _submission()
    result = {field: value for field, value in runtime_env.items() if field not in stated or field == "env_vars"}
    if "env_vars" in result and "env_vars" in stated:
        result["env_vars"] = {name: value for name, value in result["env_vars"].items() if name not in stated["env_vars"]}
    return result


def _is_secret(name: str) -> bool:
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

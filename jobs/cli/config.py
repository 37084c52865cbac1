"""One tree of configuration for all jobs: one YAML recipe, `section.key=value` overrides, validated once.

In: the name or path of a recipe and the overrides of a command line. Out: a frozen `Config`, or one `ConfigError` that lists
every problem with its dotted path. Imports neither torch nor Ray, so that a misspelled key is reported at once.

Precedence, later wins:
    1. the defaults of the sections (pipeline/config.py, training/config.py, jobs/cli/embed_config.py)
    2. the recipe
    3. the overrides, left to right
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from jobs.cli import job_keys, runtime_env
from jobs.cli.embed_config import EmbedConfig
from jobs.cli.ineffective_keys import ineffective_keys
from jobs.cli.suggestions import suggest
from model.config import get_architecture
from pipeline.config import CurateConfig, IndexConfig, IngestConfig
from pipeline.errors import ConfigError
from pipeline.storage.small_text import decode_text
from pipeline.storage.url_credentials import has_userinfo, refusal
from training.config import TrainingConfig

RECIPES = Path(__file__).parents[1] / "recipes"
LOCATIONS = (
    "ingest.input",
    "ingest.output",
    "curate.data",
    "curate.exclude_hashes",
    "curate.scores",
    "embed.data",
    "embed.output",
    "index.input",
    "index.output",
    "data.uri",
    "data.cache_dir",
    "data.mixture.uri",
    "run.dir",
    "run.resume",
    "model.weights",
    "evaluation.retrieval_uri",
    "evaluation.zero_shot.uri",
    "evaluation.zero_shot.class_names_file",
    "evaluation.zero_shot.templates_file",
    "evaluation.linear_probe.train_uri",
    "evaluation.linear_probe.test_uri",
    "evaluation.linear_probe.validation_uri",
)
"""Keys that hold a path or an address. Where the path leads through a list of sections, each of them is meant."""
FLOW = ('"', "'", "[", "{", "|", ">")
"""First characters of a value that is written as YAML; any other, where a key holds text, is that text."""


class Config(TrainingConfig):
    """The whole tree: the sections of training (training/config.py) and those of the other jobs."""

    ingest: IngestConfig = IngestConfig()
    curate: CurateConfig = CurateConfig()
    index: IndexConfig = IndexConfig()
    embed: EmbedConfig = EmbedConfig()


def load_config(recipe: str, overrides: Sequence[str] = (), job: str | None = None) -> Config:
    """Reads a recipe, applies the overrides and validates the result.

    Args:
        recipe: a path, or the bare name of a recipe in jobs/recipes.
        overrides: `section.key=value`; the value is read as YAML.
        job: the command that the overrides were typed for; it refuses those of sections that it does not use.

    Raises:
        ConfigError: with one line for every problem.
    """
    tree = read_recipe(recipe)
    problems: list[str] = []
    _say_what_is_typed_twice(overrides)
    for override in overrides:
        problem = _refuse_section(override, job) or _apply_override(tree, override, job)
        if problem:
            problems.append(problem)
    _refuse_secrets(tree)
    config = None
    try:
        config = _validate(tree, overrides)
    except ValidationError as error:
        problems += [_explain(item, job) for item in error.errors()]
    name = tree.get("model", {}).get("name") if isinstance(tree.get("model"), dict) else None
    if isinstance(name, str):
        try:
            get_architecture(name)
        except ValueError as error:
            problems.append(f"model.name={name}: {error}")
    if config is not None:
        problems += runtime_env.problems(config.cluster.runtime_env)
        problems += ineffective_keys(config, {override.partition("=")[0] for override in overrides}, job) if job else []
    if problems or config is None:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return with_absolute_paths(config)


def _validate(tree: dict[str, Any], overrides: Sequence[str]) -> Config:
    """The tree as a Config. Where a key holds text, an override that YAML reads as a number or a word is its text."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        texts = dict(override.split("=", 1) for override in overrides if "=" in override)
        meant = {".".join(map(str, item["loc"])) for item in error.errors() if item["type"] == "string_type"} & texts.keys()
        for dotted in meant:
            if texts[dotted][:1] not in FLOW:
                _put(tree, dotted, texts[dotted])
        if not meant:
            raise
    return Config.model_validate(tree)


def _node(tree: dict[str, Any], dotted: str) -> Any:
    node: Any = tree
    for key in dotted.split("."):
        node = node[key]
    return node


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    parent, _, key = dotted.rpartition(".")
    _node(tree, parent)[key] = value


def _refuse_secrets(tree: dict[str, Any]) -> None:
    """Raises ConfigError before any other message could show them."""
    cluster = tree["cluster"] if "cluster" in tree else None
    if isinstance(cluster, dict) and "runtime_env" in cluster:
        problems = runtime_env.secret_problems(cluster["runtime_env"])
        if problems:
            raise ConfigError("\n".join(problems))


def read_recipe(recipe: str) -> dict[str, Any]:
    """The recipe as a tree of plain values. Raises ConfigError where the file is missing or not a mapping."""
    path = Path(recipe)
    if not path.suffix and not path.exists():
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(f"--config={recipe}: there is no such recipe; give a path or one of {', '.join(recipe_names())}")
    try:
        tree = yaml.load(decode_text(path.read_bytes(), f"--config={recipe}"), _Recipe)
    except yaml.YAMLError as error:
        raise ConfigError(f"--config={recipe}: not YAML: {' '.join(str(error).split())}; correct the file") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"--config={recipe}: a recipe is a mapping of sections, not a {type(tree).__name__}; correct the file"
        )
    return tree


class _Recipe(yaml.SafeLoader):
    """Reads YAML, and refuses a key that occurs twice, of which YAML's own loader would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} occurs twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def dump_config(config: BaseModel) -> str:
    """The resolved tree as YAML, which is itself a recipe."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def with_absolute_paths(config: Config) -> Config:
    """Makes local paths absolute, since a Ray worker has another current folder than the command line.

    Raises:
        ConfigError: an address holds a password, which --show-config, config.yaml and W&B would show.
    """
    tree = config.model_dump()
    for location in LOCATIONS:
        *parents, key = location.split(".")
        for node in _nodes(tree, parents):
            if node[key] and has_userinfo(node[key]):
                raise ConfigError(f"{location}={refusal(node[key])}")
            if node[key] and "://" not in node[key] and node[key] not in ("auto", "never"):  # words that run.resume takes
                node[key] = "::".join(_absolute(part) for part in node[key].split("::"))  # several tars
    folders = tree["ingest"]["fetch"]["allow_files"]
    tree["ingest"]["fetch"]["allow_files"] = [_absolute(folder) for folder in folders]
    return Config.model_validate(tree)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _nodes(tree: Any, parents: Sequence[str]) -> list[dict[str, Any]]:
    """The sections at a path: none where a parent is unset, several where a parent is a list."""
    nodes = [tree]
    for parent in parents:
        found = [node[parent] for node in nodes if node[parent] is not None]
        nodes = [inner for node in found for inner in (node if isinstance(node, list | tuple) else [node])]
    return nodes


def key_names(section: type[BaseModel] = Config, prefix: str = "", inside_lists: bool = False) -> Iterator[str]:
    """Every dotted key of the tree that can be set. A list of sections is one key, unless `inside_lists`."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        is_list = inner is not None and field.annotation == tuple[inner, ...]  # type: ignore[valid-type]
        if inner is None or is_list:
            yield prefix + name
        if inner is not None and (inside_lists or not is_list):
            yield from key_names(inner, f"{prefix}{name}.", inside_lists)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, directly, in a list or as `Section | None`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def remedy(dotted: str, job: str | None = None) -> str:
    """The key that was meant by one that does not exist, as the end of a message."""
    keys = list(key_names(inside_lists=True))
    return suggest(dotted, keys, job_keys.JOBS[job].select(keys) if job else ())


def _refuse_section(override: str, job: str | None) -> str:
    """The problem with an override of a section that the job does not use; empty where there is none."""
    dotted = override.partition("=")[0]
    problem = job_keys.refusal(job, dotted.partition(".")[0]) if job else ""
    return f"{dotted}: {problem}" if problem else ""


def _say_what_is_typed_twice(overrides: Sequence[str]) -> None:
    """The last value counts, so that a script may append what a person types."""
    values: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if values.setdefault(key, value) != value:
            print(f"{key} is given more than once: the last value counts", file=sys.stderr)
        values[key] = value


def _apply_override(tree: dict[str, Any], override: str, job: str | None) -> str | None:
    """Sets one key in the tree. Returns the problem with the override, if any."""
    dotted, equals, text = override.partition("=")
    if not equals or "." not in dotted:
        return f"{override}: an override is section.key=value; {remedy(dotted, job)}"
    is_plain = text[:1] not in FLOW
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        if not is_plain:
            return f"{override}: the value is not YAML; quote it"
        value = text  # such as *.csv
    if is_plain and isinstance(value, str):
        value = text  # YAML takes what follows " #" for a comment
    *parents, key = dotted.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            return f"{override}: {parent} is a value, not a section; {remedy(dotted, job)}"
        node = child
    node[key] = value
    return None


def _explain(error: Any, job: str | None) -> str:
    """One line for a problem that pydantic found: key = value: rule; remedy."""
    path = ".".join(str(part) for part in error["loc"] if part not in ("int", "float", "str") and "[" not in str(part))
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key; {remedy(path, job)}"
    if error["type"] == "missing":
        return f"{path}: is required; set it in the recipe or on the command line"
    if error["type"] == "tuple_type":
        typed = error["input"]
        shown = "..." if not isinstance(typed, str | int | float) else json.dumps(typed, ensure_ascii=False)
        shown = typed if isinstance(typed, str) and re.fullmatch(r"[A-Za-z]\w*", typed) else shown
        return f"{path}={error['input']!r}: is a list; write {shlex.quote(f'{path}=[{shown}]')}"
    rule = error["msg"].removeprefix("Value error, ")
    if path.startswith("cluster.runtime_env"):  # its value may hold a secret
        return f"{path}: {rule[0].lower()}{rule[1:]}"
    return f"{path}={error['input']!r}: {rule[0].lower()}{rule[1:]}"

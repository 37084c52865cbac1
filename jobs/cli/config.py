"""One tree of configuration for all jobs: one YAML recipe, `section.key=value` overrides, validated once.

In: the name or path of a recipe and the overrides of a command line. Out: a frozen `Config`, or one `ConfigError` that lists
every problem with its dotted path. Imports neither torch nor Ray, so a misspelled key is reported at once.

Precedence, later wins:
    1. the defaults of the sections (pipeline/config.py, training/config.py)
    2. the recipe
    3. the overrides, left to right
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from jobs.cli import runtime_env
from model.config import get_architecture
from pipeline.config import CurateConfig, IndexConfig, IngestConfig
from pipeline.errors import ConfigError
from pipeline.storage.url_credentials import has_userinfo, refusal
from training.config import EmbedConfig, TrainingConfig

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
"""Keys that hold a path or an address; a list of sections on the way means every one of them."""


class Config(TrainingConfig):
    """The whole tree: what training needs (training/config.py), and the other jobs' sections."""

    ingest: IngestConfig = IngestConfig()
    curate: CurateConfig = CurateConfig()
    index: IndexConfig = IndexConfig()
    embed: EmbedConfig = EmbedConfig()


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe, applies the overrides and validates the result.

    Args:
        recipe: a path, or the bare name of a recipe in jobs/recipes.
        overrides: `section.key=value`; the value is read as YAML.

    Raises:
        ConfigError: with one line for every problem.
    """
    tree = read_recipe(recipe)
    problems: list[str] = []
    for override in overrides:
        problem = _apply_override(tree, override)
        if problem:
            problems.append(problem)
    _refuse_secrets(tree)
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    name = tree.get("model", {}).get("name") if isinstance(tree.get("model"), dict) else None
    if isinstance(name, str):
        try:
            get_architecture(name)
        except ValueError as error:
            problems.append(f"model.name={name}: {error}")
    if config is not None:
        problems += runtime_env.problems(config.cluster.runtime_env)
    if problems or config is None:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return with_absolute_paths(config)


def _refuse_secrets(tree: dict[str, Any]) -> None:
    """Before anything is said of the tree that would show them. Raises ConfigError."""
    cluster = tree["cluster"] if "cluster" in tree else None
    if isinstance(cluster, dict) and "runtime_env" in cluster:
        problems = runtime_env.secret_problems(cluster["runtime_env"])
        if problems:
            raise ConfigError("\n".join(problems))


def read_recipe(recipe: str) -> dict[str, Any]:
    """The recipe's tree as YAML gives it. Raises ConfigError where there is none or it is no mapping."""
    path = Path(recipe)
    if not path.suffix and not path.exists():
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(f"--config={recipe}: there is no such recipe; give a path, or one of {', '.join(recipe_names())}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config={recipe}: not YAML: {' '.join(str(error).split())}; mend the file") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"--config={recipe}: a recipe is a mapping of sections; it holds a {type(tree).__name__}")
    return tree


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def dump_config(config: BaseModel) -> str:
    """The resolved tree as YAML, which is itself a recipe."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def with_absolute_paths(config: Config) -> Config:
    """Local paths made absolute: a Ray worker's current folder is not that of the person who typed the command.

    Raises:
        ConfigError: an address holds a password, which --show-config, config.yaml and W&B would show.
    """
    tree = config.model_dump()
    for location in LOCATIONS:
        *parents, key = location.split(".")
        for node in _nodes(tree, parents):
            if node[key] and has_userinfo(node[key]):
                raise ConfigError(f"{location}={refusal(node[key])}")
            if node[key] and "://" not in node[key] and node[key] not in ("auto", "never"):  # run.resume's other words
                node[key] = str(Path(node[key]).expanduser().absolute())
    return Config.model_validate(tree)


def _nodes(tree: Any, parents: Sequence[str]) -> list[dict[str, Any]]:
    """The sections at a path: none where one on the way is unset, several where it is a list."""
    nodes = [tree]
    for parent in parents:
        found = [node[parent] for node in nodes if node[parent] is not None]
        nodes = [inner for node in found for inner in (node if isinstance(node, list | tuple) else [node])]
    return nodes


def key_names(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree that can be set; a list of sections is one."""
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None or field.annotation == tuple[inner, ...]:  # type: ignore[valid-type]
            yield prefix + name
        else:
            yield from key_names(inner, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also behind `| None`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _apply_override(tree: dict[str, Any], override: str) -> str | None:
    """Sets one key in the tree. Returns what is wrong with the override, if anything."""
    dotted, equals, text = override.partition("=")
    if not equals or "." not in dotted:
        return f"{override}: an override is section.key=value; {_suggest(dotted)}"
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return f"{override}: the value is not YAML; quote it"
    *parents, key = dotted.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            return f"{override}: {parent} is a value, not a section; {_suggest(dotted)}"
        node = child
    node[key] = value
    return None


def _explain(error: Any) -> str:
    """One line for one problem that pydantic found: key = value: rule; remedy."""
    path = ".".join(str(part) for part in error["loc"] if part not in ("int", "float", "str") and "[" not in str(part))
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_suggest(path)}"
    if error["type"] == "missing":
        return f"{path}: is required; set it in the recipe or on the command line"
    rule = error["msg"].removeprefix("Value error, ")
    if path.startswith("cluster.runtime_env"):  # what is wrong with it may be that it holds a secret
        return f"{path}: {rule[0].lower()}{rule[1:]}"
    return f"{path}={error['input']!r}: {rule[0].lower()}{rule[1:]}"


def _suggest(dotted: str) -> str:
    """The nearest keys to a misspelled one, by their whole path and by their last part."""
    names = list(key_names())
    close = difflib.get_close_matches(dotted, names, n=1, cutoff=0.7)
    if not close:
        tails = {name.rpartition(".")[2]: name for name in names}
        close = [tails[tail] for tail in difflib.get_close_matches(dotted.rpartition(".")[2], tails, n=1, cutoff=0.7)]
    return f"did you mean {close[0]}?" if close else "see --help for the keys"

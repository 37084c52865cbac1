"""The configuration keys as help text: name, type, default and attribute docstring.

In: a job, a section or a key, and the recipe that the job loads without `--config`. Out: text wrapped to a width. The
docstrings are read from the source of the sections, without importing torch or Ray.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.cli.config import Config, read_recipe, section_of
from jobs.cli.job_keys import JOBS, users_of

MAX_COLUMN = 46
"""Last column at which descriptions start; a longer name takes a line of its own."""
SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<=\.)\s+(?=[A-Z`\"'\[(])")


@dataclass(frozen=True)
class Key:
    """One key of the tree.

    Attributes:
        name: dotted, from the root.
        kind: the values that it takes, e.g. `INT|auto`.
        default: as YAML; None where the key is required.
        docs: its attribute docstring on one line; empty where it has none.
        in_recipe: its value in the recipe that is loaded without `--config`, as YAML; None where it equals the default.
    """

    name: str
    kind: str
    default: str | None
    docs: str
    in_recipe: str | None = None

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return SENTENCE_END.split(self.docs, maxsplit=1)[0]


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[Key]:
    """Yields every key of the tree, including those of sections in a list."""
    docs = _attribute_docs(section.__module__)
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        is_list = inner is not None and field.annotation == tuple[inner, ...]  # type: ignore[valid-type]
        if inner is None or is_list:
            own = docs[section.__name__, name] if (section.__name__, name) in docs else ""
            yield Key(prefix + name, _kind(field.annotation), _default(field), own)
        if inner is not None:
            yield from all_keys(inner, f"{prefix}{name}{'[n]' if is_list else ''}.")


def keys_with_recipe(recipe: str) -> list[Key]:
    """Every key of the tree, with its value in a recipe."""
    tree = read_recipe(recipe)
    values = ((key, _value_at(tree, key.name)) for key in all_keys())
    texts = ((key, None if value is _UNSET else _as_yaml(value)) for key, value in values)
    return [key if text in (None, key.default) else replace(key, in_recipe=text) for key, text in texts]


def first_page(job: str, width: int, recipe: str = "default") -> str:
    """The most used keys of a job, and how to see the others.

    Args:
        recipe: the one that the job loads without `--config`.
    """
    keys = JOBS[job]
    known = {key.name: key for key in keys_with_recipe(recipe)}
    names = list(keys.most_used) or keys.select(known)
    more = f"`--help SECTION` shows all keys of one of {', '.join(keys.sections)}; `--help all` the whole tree."
    title = "most used keys" if keys.most_used else "keys"
    return f"{title}:\n{_table([known[name] for name in names], width, recipe, short=True)}\n\n{fill(more, width)}"


def pages(topic: str, job: str | None, width: int, recipe: str = "default") -> str | None:
    """The help of a section, of a key, or of all sections.

    Args:
        topic: `all`, a section such as `train` or `evaluation.zero_shot`, or a key.
        job: limits a section to the keys that the job uses.
        recipe: the one that the job loads without `--config`.

    Returns:
        None if there is no such topic.
    """
    keys = keys_with_recipe(recipe)
    if topic == "all":
        return "\n\n".join(_section_page(name, keys, None, width, recipe) for name in Config.model_fields)
    if any(key.name.startswith(f"{topic}.") for key in keys):
        return _section_page(topic, keys, job, width, recipe)
    exact = [key for key in keys if key.name == topic]
    return _table(exact, width, recipe, short=False) if exact else None


def _section_page(section: str, keys: list[Key], job: str | None, width: int, recipe: str) -> str:
    inside = [key for key in keys if key.name.startswith(f"{section}.")]
    used = [key for key in inside if key.name in JOBS[job].select([key.name for key in inside])] if job else []
    users = users_of([key.name for key in inside])
    whole = ", ".join(name for name, names in users.items() if len(names) == len(inside))
    parts: dict[str, list[str]] = {}
    for name, names in users.items():
        if len(names) < len(inside):
            parts.setdefault(", ".join(names), []).append(name)
    by = "; ".join([*([whole] if whole else []), *(f"only {names} by {', '.join(jobs)}" for names, jobs in parts.items())])
    if job and not used:
        note = f"not used by jobs/{job}.py, but by {by}"
    elif job and len(used) < len(inside):
        note = f"the keys that jobs/{job}.py uses; the whole section is used by {whole}"
    else:
        note = f"used by {by}"
    title = fill(f"{_section_docs(section)} ({note})", width)
    return f"{title}\n\n{_table(used or inside, width, recipe, short=False)}"


def _default_note(key: Key, recipe: str) -> str:
    if key.default is None:
        return "(required)"
    if key.in_recipe is None:
        return f"(default: {key.default})"
    return f"(default: {key.in_recipe} by the recipe `{recipe}`; {key.default} if a recipe omits it)"


def _table(keys: list[Key], width: int, recipe: str, short: bool) -> str:
    """Two columns: name and type; description and default."""
    heads = [f"  {key.name} {key.kind}" for key in keys]
    column = min(max(map(len, heads)) + 2, MAX_COLUMN, width // 2)
    lines = []
    for key, head in zip(keys, heads, strict=True):
        description = f"{key.summary if short else key.docs} {_default_note(key, recipe)}".strip()
        text = textwrap.wrap(description, max(20, width - column))
        if len(head) + 2 > column:
            lines += textwrap.wrap(head.strip(), width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        else:
            lines.append(f"{head:{column}}{text.pop(0)}")
        lines += [" " * column + line for line in text]
    return "\n".join(lines)


def fill(text: str, width: int) -> str:
    """Wraps a paragraph without breaking paths and options."""
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)


# ------------------------------------------------------------------------------------------------------ types and defaults


def _kind(annotation: Any) -> str:
    """The values of a type, as one writes them in YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return "|".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return "|".join(_kind(argument) for argument in arguments)
    if origin is tuple:
        return f"[{_kind(arguments[0])}, {'...' if arguments[1] is Ellipsis else _kind(arguments[1])}]"
    if origin is dict:
        return "{NAME: VALUE, ...}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    names: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", type(None): "null"}
    return names[annotation]


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    return _as_yaml(field.get_default(call_default_factory=True))


_UNSET = object()


def _value_at(tree: Any, name: str) -> Any:
    """The value of a dotted key in a recipe; `_UNSET` if the recipe does not set it."""
    for part in name.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return _UNSET
        tree = tree[part]
    return tree


def _as_yaml(value: Any) -> str:
    if value == "":
        return '""'
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


# ------------------------------------------------------------------------------------------------------------- docstrings


@functools.cache
def _attribute_docs(module: str) -> dict[tuple[str, str], str]:
    """Attribute docstrings of all classes of a module: (class, attribute) -> text."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        (section.name, attribute.target.id): re.sub(r"\bNone:", "null:", _one_line(docs.value.value))
        for section in tree.body
        if isinstance(section, ast.ClassDef)
        for attribute, docs in zip(section.body, section.body[1:], strict=False)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        if isinstance(docs, ast.Expr) and isinstance(docs.value, ast.Constant) and isinstance(docs.value.value, str)
    }


def _section_docs(section: str) -> str:
    """The name and the class docstring of a section."""
    kind: type[BaseModel] = Config
    for part in section.removesuffix("[n]").split("."):
        inner = section_of(kind.model_fields[part.removesuffix("[n]")].annotation)
        assert inner is not None
        kind = inner
    text = re.sub(r"^`[^`]*`:? ?", "", _one_line(kind.__doc__ or ""))
    return f"{section}.*: {text}" if text else f"{section}.*"


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --------------------------------------------------------------------------------------------------------- module docstrings


def reflow(text: str, width: int) -> str:
    """Wraps the docstring of a job: fills paragraphs, and moves remarks above commands that are too long."""
    blocks = [_reflow_block(block, width) for block in re.split(r"\n\s*\n", text.strip())]
    return "\n\n".join(blocks)


def _reflow_block(block: str, width: int) -> str:
    lines = block.splitlines()
    if not any(line.startswith(" ") for line in lines):
        return fill(" ".join(lines), width)
    if max(map(len, lines)) <= width:
        return block
    return "\n".join(part for line in _joined(lines) for part in _reflow_line(line, width))


def _joined(lines: Iterable[str]) -> list[str]:
    """Joins lines with their continuations, which are indented further."""
    joined: list[str] = []
    for line in lines:
        if joined and len(line) - len(line.lstrip()) > 6:
            joined[-1] = f"{joined[-1]} {line.strip()}"
        else:
            joined.append(line)
    return joined


def _reflow_line(line: str, width: int) -> list[str]:
    """Wraps a command and its remark, which three or more spaces separate."""
    indent = " " * (len(line) - len(line.lstrip()))
    command, *remark = re.split(r"\s{3,}", line.strip(), maxsplit=1)
    above = textwrap.wrap(remark[0], width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ") if remark else []
    wrapped = textwrap.wrap(
        command,
        width - 2,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    if not indent or not command.startswith(("python", "ray", "make")):
        return [*wrapped, *(part.replace("# ", "    ", 1) for part in above)]
    return [*above, *(f"{part} \\" for part in wrapped[:-1]), wrapped[-1]]

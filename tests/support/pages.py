"""Markdown pages as a reader follows them: their commands, links, and the paths that they name.

In: text of a page, or a file of the repository. Out: commands, link targets, anchors, and the files one hop further.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|md)")


def commands(text: str) -> list[str]:
    """Return the lines of a page's command blocks, without comments."""
    lines = (line for kind, block in _BLOCK.findall(text) if kind in ("", "sh") for line in block.splitlines())
    return [command for command in (re.split(r"\s+# |^# ", line)[0].strip() for line in lines) if command]


def quoted(text: str) -> list[str]:
    """Return the texts in backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))


def links(text: str) -> list[str]:
    return [target for target in _LINK.findall(_BLOCK.sub("", text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, formed as on GitHub."""
    titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page whose file or anchor does not exist."""
    return [target for target in links(page.read_text(encoding="utf-8")) if not _resolves(page, target)]


def _resolves(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    goal = (page.parent / path).resolve() if path else page
    return goal.exists() and (not anchor or anchor in anchors(goal.read_text(encoding="utf-8")))


def overrides(command: str) -> list[str]:
    """Return the `section.key=value` words of a job's command."""
    return [word for word in shlex.split(command) if re.match(r"[a-z_]+\.[a-z_.]+=", word)]


def recipe(command: str) -> str:
    named = re.search(r"--config (\S+)", command)
    return named.group(1) if named else "default"


def next_hop(path: Path) -> set[Path]:
    """Return the files that a page links to or names, or that a module's docstring names.

    A name is a path from the root, from the file's own folder, or from the folder of its package (`loss.py` and
    `data/sample_order.py` in a docstring of training/).
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        named = [target.partition("#")[0] for target in links(text)] + [one for one in quoted(text) if _PATH.fullmatch(one)]
    else:
        named = _PATH.findall(ast.get_docstring(ast.parse(text)) or "")
    package = ROOT / path.relative_to(ROOT).parts[0]
    candidates = {(folder / name).resolve() for name in named if name for folder in (ROOT, path.parent, package)}
    return {one for one in candidates if one.is_file() and one.suffix in (".md", ".py") and one.is_relative_to(ROOT)}


def reached(start: Iterable[Path], hops: int) -> set[Path]:
    """Return the files within a number of hops of some files, including these."""
    found = set(start)
    edge = set(found)
    for _ in range(hops):
        edge = set().union(*(next_hop(path) for path in edge)) - found
        found |= edge
    return found

"""Plain English: how docstrings open, and words that were retired because sentences with them had to be read twice."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("rayclip", "pipeline", "model", "training", "jobs", "infra")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "LOG.md")]
)

OPENINGS = ("Of", "What", "How", "Where", "Whether", "Which", "Who", "Why", "So", "Likewise")
"""A docstring opens with a verb or a noun."""
RETIRED = {
    r"\banew\b": "again",
    r"\b(go|goes|going|went|gone) on\b": "resume, continue",
    r"\bno numbers?\b": "non-finite, NaN",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\blook(s|ed|ing)? (whether|if)\b": "check",
    r"\b(leave|leaves|leaving|left) (it |them |her |him )?out\b": "skip, omit",
    r"\bwhat is no\b": "non-...",
}
PICTURE = re.compile(r"picture", re.IGNORECASE)
"""The field's word is image; `picture` is for prose that people read (README, docs, messages)."""
ALLOWED_PICTURES = {"--picture", "picture.png"}
"""An option that users type."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstrings(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, text) of every string that stands as a statement: of modules, classes, functions and attributes."""
    nodes = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return [(node.lineno, node.value) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def strings(tree: ast.AST) -> list[tuple[int, str]]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [(node.lineno, node.value) for node in nodes if isinstance(node.value, str)]


def comments(text: str) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def identifiers(text: str) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.NAME]


def retired_in(places: list[tuple[int, str]]) -> list[str]:
    return [
        f"line {line}: {match.group()!r} -> {better}"
        for line, text in places
        for pattern, better in RETIRED.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_docstring_opens_with_a_verb_or_a_noun(path):
    found = [
        f"line {line}: {text.split()[0]}"
        for line, text in docstrings(ast.parse(path.read_text()))
        if text.split()[0] in OPENINGS
    ]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_code_speaks_without_retired_words(path):
    text = path.read_text()
    assert not retired_in(strings(ast.parse(text)) + comments(text))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_code_says_image(path):
    text = path.read_text()
    places = docstrings(ast.parse(text)) + comments(text) + identifiers(text)
    shown = [(line, re.sub("|".join(map(re.escape, ALLOWED_PICTURES)), "", part)) for line, part in places]
    assert not [f"line {line}: {part.strip()[:60]}" for line, part in shown if PICTURE.search(part)]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_pages_speak_without_retired_words(path):
    assert not retired_in(list(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)))


def test_the_rules_catch_what_they_retire():
    tree = ast.parse('"""Of all that goes on."""\nx = 1\n"""Whether a picture is mended."""\n# fetched anew\n')
    assert [text.split()[0] for _, text in docstrings(tree)] == ["Of", "Whether"]
    assert len(retired_in(docstrings(tree) + comments("# fetched anew\n"))) == 3

"""The rules of the house that no linter knows, as tests."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("rayclip", "pipeline", "model", "training", "jobs")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_of_a_generic_name_resolves_inside_the_repository(room):
    spec = importlib.util.find_spec(room)
    assert spec is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_pyproject_lists_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"}
    assert set(listed) == found


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.name == "__init__.py" and path.parent.name != "rayclip"],  # whose names are the interface
    ids=relative,
)
def test_a_package_file_holds_a_docstring_only(path):
    body = ast.parse(path.read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_short_and_modules_say_their_purpose(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says its purpose"
    assert text.count("\n") <= 400
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = [f"{node.name}: {node.end_lineno - node.lineno + 1}" for node in functions if node.end_lineno - node.lineno >= 60]
    assert not long


@pytest.mark.parametrize("path", sorted((ROOT / "model").glob("*.py")), ids=relative)
def test_model_knows_nothing_of_distribution(path):
    assert not re.search(r"torch\.distributed|import ray|from ray", path.read_text())


def test_configuration_modules_import_no_heavy_library():
    code = (
        "import sys, jobs.cli.config; print([name for name in ('torch', 'ray', 'img2dataset', 'cv2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"

"""Builds the wheel, in which the packages of this repository lie under one name, `rayclip`.

`from training.loss import X` becomes `from rayclip.training.loss import X`, and "python jobs/train.py" in texts `rayclip
train`. In a checkout (`pip install -e .`) the packages keep their names. docs/decisions/0031-package.md
"""

import ast
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = "rayclip"
PACKAGES = ("pipeline", "model", "training", "jobs")


class BuildUnderOneName(build_py):
    """Copies the packages as usual, then moves them and rewrites their imports."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib)
        for package in PACKAGES:
            shutil.rmtree(target / ROOT / package, ignore_errors=True)
            (target / package).rename(target / ROOT / package)
        for path in (path for path in (target / ROOT).rglob("*") if path.suffix in (".py", ".yaml", ".html")):
            source = path.read_text("utf-8")
            path.write_text(under_one_name(source, str(path)) if path.suffix == ".py" else with_commands(source), "utf-8")


class EggInfo(egg_info):
    """Names the one package that is installed."""

    def run(self) -> None:
        super().run()
        (Path(self.egg_info) / "top_level.txt").write_text(f"{ROOT}\n")


def under_one_name(source: str, path: str) -> str:
    """The source of a module with its imports and the commands in its texts as they are in an installed RayCLIP."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES and not node.level:
            line = node.lineno - 1
            lines[line] = lines[line].replace("from ", f"from {ROOT}.", 1)
        elif isinstance(node, ast.Import):
            for name in (name.name for name in node.names if name.name.split(".")[0] in PACKAGES):
                if len(node.names) > 1 or "." in name:
                    raise ValueError(f"{path}:{node.lineno}: `import {name}` has no form below {ROOT}; write `from ... import`")
                lines[node.lineno - 1] = lines[node.lineno - 1].replace("import ", f"from {ROOT} import ", 1)
    return with_commands("".join(lines))


def with_commands(text: str) -> str:
    """A text with the commands of an installed RayCLIP."""
    return re.sub(r"(?:python )?\bjobs/([a-z_]+)\.py\b", rf"{ROOT} \1", text)


setup(cmdclass={"build_py": BuildUnderOneName, "egg_info": EggInfo})

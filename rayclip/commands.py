"""The jobs as commands: their names and first lines, how one is run, and what a shell completes.

In: a command's name and words. Out: its exit code. Lists and help read the files of jobs/ without importing them.
"""

from __future__ import annotations

import argparse
import ast
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jobs
from jobs.cli.job_keys import import_job

_FOLDER = Path(jobs.__file__).parent
_REPORTED = ("ray", "torch", "numpy", "pyarrow", "webdataset", "wandb")


def names() -> list[str]:
    """Names of all commands, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__")


def table() -> str:
    """One line per command: its name, and the first line of its docstring."""
    lines = {name: (ast.get_docstring(ast.parse((_FOLDER / f"{name}.py").read_text("utf-8"))) or "") for name in names()}
    return "".join(f"    {name:<11}{text.splitlines()[0]}\n" for name, text in lines.items())


def run(name: str, words: Sequence[str]) -> int:
    """Runs a command as its file in jobs/ does; jobs with a recipe end the process."""
    from jobs.cli.command_line import main

    sys.argv = [f"rayclip {name}", *words]
    module = import_job(name)
    if hasattr(module, "arguments") and hasattr(module, "job"):
        main(module.arguments(), module.job)
    code: int = module.main()
    return code


# ------------------------------------------------------------------------------------------------------------ for the shell


def shells() -> tuple[str, ...]:
    import shtab

    return tuple(shtab.SUPPORTED_SHELLS)


def completion(shell: str) -> str:
    """A script that completes commands, options, recipes and keys in a shell."""
    import shtab

    from jobs.cli.config import recipe_names
    from jobs.cli.job_keys import JOBS
    from jobs.cli.key_help import all_keys

    parser = argparse.ArgumentParser("rayclip", add_help=False)
    inside = parser.add_subparsers()
    keys = [key.name for key in all_keys()]
    for name in names():
        module = import_job(name)
        if not hasattr(module, "arguments"):
            inside.add_parser(name, help=name)
            continue
        job: Any = module.arguments()
        for action in job._actions:
            if action.dest == "config":
                action.choices = recipe_names()
            elif action.dest == "overrides":
                action.choices = [f"{key}=" for key in (JOBS[name].select(keys) if name in JOBS else keys)]
        inside.add_parser(name, help=name, parents=[job], add_help=False)
    return str(shtab.complete(parser, shell))


# -------------------------------------------------------------------------------------------------------------- bug reports


def versions() -> str:
    """Versions of RayCLIP, Python, the packages that matter, and CUDA as torch sees it."""
    import torch

    lines = [f"rayclip {_version('rayclip')}", f"python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in _REPORTED]
    cuda = torch.version.cuda or "none"
    return "\n".join([*lines, f"cuda {cuda}, {torch.cuda.device_count()} GPUs here"])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"

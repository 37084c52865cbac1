"""The argument parser of a job: its docstring first, then its options, then its configuration keys.

In: the docstring and the name of a job. Out: `--help` on one or two screens, `--help SECTION` for all keys of a section, and
errors that translate foreign options (`--lr`).
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs.cli import key_help
from jobs.cli.config import key_names, read_recipe, recipe_names, remedy
from jobs.cli.job_keys import JOBS, shown

WIDEST, NARROWEST = 120, 60
UNRECOGNIZED = "unrecognized arguments: "


class JobParser(argparse.ArgumentParser):
    """Parser whose help ends with the keys that its job uses.

    Attributes:
        job: a name in `jobs.cli.job_keys.JOBS`; None: every section is allowed, and the help shows none.
    """

    def __init__(self, description: str | None, job: str | None) -> None:
        super().__init__(description=description, add_help=False)
        self.job = job
        self.add_argument(
            "-h",
            "--help",
            nargs="?",
            const="",
            metavar="SECTION",
            action=_Help,
            help="show this page, or all keys of a section (or of `all`), or one key",
        )

    @property
    def default_recipe(self) -> str:
        """The recipe that is loaded without `--config`."""
        return self.get_default("config") or "default"

    @property
    def _command(self) -> str:
        name = shown(self.job or Path(self.prog).stem)
        return self.prog if self.prog.startswith("rayclip ") else f"python {name}" if name.endswith(".py") else name

    def format_help(self) -> str:
        width, recipes = _width(), recipes_for(self.job)
        formatter = argparse.HelpFormatter(self.prog, width=width)
        for group in self._action_groups:
            actions = [action for action in group._group_actions if action.option_strings]
            if actions:
                formatter.start_section(group.title)
                formatter.add_arguments(actions)
                formatter.end_section()
        places = "".join(f"{action.metavar} " for action in self._get_positional_actions() if action.dest != "overrides")
        parts = [
            f"usage: {self._command} {places}[--config RECIPE] [OPTIONS] [section.key=value ...]",
            key_help.reflow(self.description or "", width),
            formatter.format_help().strip(),
            key_help.first_page(self.job, width, self.default_recipe) if self.job else "",
            key_help.fill(f"recipes: {', '.join(recipes)}", width) if recipes else "",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def error(self, message: str) -> NoReturn:
        """Exits with code 2. Translates options of other programs to our keys."""
        if message.startswith(UNRECOGNIZED):
            words = message.removeprefix(UNRECOGNIZED).split()
            hints = [f"  {word}: {self._hint(word)}" for word in words if word.startswith("--")]
            self.exit(2, "\n".join([f"{self.prog}: error: {message}", *hints, f"see {self.prog} --help"]) + "\n")
        super().error(message)

    def _hint(self, word: str) -> str:
        option = word.partition("=")[0]
        close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.8)
        if close:
            return f"did you mean {close[0]}?"
        return f"keys are given as section.key=value; {remedy(option, self.job)}"


class _Help(argparse.Action):
    """`--help` and `--help SECTION`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        assert isinstance(parser, JobParser)
        topic = str(values or "").removesuffix(".*").rstrip(".")
        if not topic or "=" in topic:
            parser.print_help()
            parser.exit()
        text = key_help.pages(topic, parser.job, _width(), parser.default_recipe)
        if text is None:
            parser.exit(
                2, f"{parser.prog}: error: --help {topic}: there is no such section or key; {remedy(topic, parser.job)}\n"
            )
        parser._print_message(f"{text}\n", sys.stdout)
        parser.exit()


def recipes_for(job: str | None) -> list[str]:
    """Names of the recipes that set a key that the job uses; all of them without a job.

    `cluster` and `tracking` do not count: a recipe that sets nothing else for a job is meant for another one.
    """
    if job is None:
        return recipe_names()
    used = {name for name in JOBS[job].select(key_names()) if not name.startswith(("cluster.", "tracking."))}
    return [name for name in recipe_names() if used & set(_keys_of(read_recipe(name)))]


def _keys_of(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values and sections of a recipe."""
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys_of(value, f"{prefix}{name}.")


def _width() -> int:
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns - 2))

"""The command `rayclip`: each job of jobs/ by its name."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from jobs.cli.failures import EXIT_BAD_INPUT
from rayclip import commands

HELP = """usage: rayclip COMMAND [--config RECIPE] [OPTIONS] [section.key=value ...]

    rayclip ingest ingest.input=table.parquet ingest.output=data/pairs
    rayclip train --config vit_b_32 data.uri=data/pairs
    rayclip train --help           options and keys of a command
    rayclip --version              versions, for a bug report
    eval "$(rayclip --completion bash)"   completes commands, options, recipes and keys; also zsh, tcsh and fish

commands:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line. Returns the exit code, or ends the process with it: a job's are in docs/exit-codes.md."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(HELP + commands.table(), end="")
        return 0 if words else EXIT_BAD_INPUT
    if first == "--version":
        print(commands.versions())
        return 0
    if first == "--completion":
        shell = words[1] if len(words) > 1 else ""
        if shell not in commands.shells():
            return _refuse(f"--completion {shell}: is no shell that is known; give one of {', '.join(commands.shells())}")
        print(commands.completion(shell))
        return 0
    if first not in commands.names():
        close = difflib.get_close_matches(first, commands.names(), n=1)
        hint = f"did you mean {close[0]}?" if close else "`rayclip --help` lists the commands"
        return _refuse(f"{first}: there is no such command; {hint}")
    return commands.run(first, words[1:])


def _refuse(message: str) -> int:
    print(f"rayclip: error: {message}", file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())

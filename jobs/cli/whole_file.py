"""Files that options name, such as --json FILE: written whole or not at all, also by a job that is stopped meanwhile.

In: the path of an option. Out: a path to write to, beside it, which takes its place at the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.cli.failures import FULL


@contextlib.contextmanager
def whole_file(name: str) -> Iterator[Path]:
    """Context with a path to write, which becomes the file at the end. An error is one of the file's own path.

    A name of anything but a regular file, such as /dev/stdout, is written to directly.
    """
    target = Path(name).resolve()  # a link stays a link
    if Path(name).absolute().is_relative_to("/dev") or (target.exists() and not target.is_file()):
        yield Path(name)
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename == str(part) or (error.filename is None and error.errno in FULL):  # a write does not name its file
            raise OSError(error.errno, error.strerror, name) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole(name: str, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(name) as path:
        path.write_text(text, encoding="utf-8")

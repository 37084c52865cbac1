"""Checks of how a failed job ends: one message, which is the last thing on the terminal, and its traceback in a file."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.stopped_jobs import Ending


def check_last_words(ending: Ending, job: str, code: int, says: str) -> list[str]:
    """Returns the message's lines.

    Args:
        says: text of the message.
    """
    lines = ending.output.splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith(f"{job}.py: ")]
    assert ending.code == code, ending.output
    assert len(begins) == 1, ending.output
    message = lines[begins[0] :]
    assert says in "\n".join(message), ending.output
    assert not any("Traceback" in line for line in lines), ending.output
    named = re.match(r"traceback: (.*)$", message[-1].strip())
    if named is not None:
        assert "Traceback (most recent call last)" in Path(named[1]).read_text()
    assert len(message) <= 4, message
    assert not ending.left, ending.left
    return message

"""Captions as they are stored: one line of NFC text."""

from __future__ import annotations

import re
import unicodedata

from pipeline.types import Failure

_SPACE = re.compile(r"\s+")


def clean_caption(value: object) -> str | Failure:
    """NFC, no control characters, single spaces; an empty caption is a reason to drop the row."""
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", "" if value is None else str(value)))
    text = "".join(character for character in text if unicodedata.category(character) not in ("Cc", "Cs")).strip()
    if not text:
        return Failure("dropped", "empty_caption", "the caption is empty")
    return text

"""Cleans captions for storage: one line of NFC text, with HTML entities resolved, within the configured lengths.

Training cleans every caption again, for the tokenizer (`model.tokenizer.clean`). That is the only cleaning of captions that did
not pass through here: those of tars indexed by jobs/index.py, and those that `data.captions` takes from `json.*`.
"""

from __future__ import annotations

import html
import re
import unicodedata

from pipeline.config import CaptionConfig
from pipeline.errors import Failure

_SPACE = re.compile(r"\s+")
_DROPPED_CATEGORIES = {"Cc", "Cs"}  # control characters and halves of surrogate pairs


def clean_caption(value: object, config: CaptionConfig) -> str | Failure:
    """Returns the cleaned caption, or the reason to drop its row."""
    text = "" if value is None else str(value)
    if not (text.isascii() and text.isprintable() and "&" not in text):  # most captions are plain
        text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))  # twice: crawls hold doubly escaped text
        text = _SPACE.sub(" ", text)
        text = "".join(letter for letter in text if unicodedata.category(letter) not in _DROPPED_CATEGORIES)
    text = _SPACE.sub(" ", text).strip()
    if not text:
        return Failure("dropped", "empty_caption", "the caption is empty")
    words = len(text.split(" "))
    if len(text) < config.min_characters or words < config.min_words:
        return Failure("dropped", "short_caption", f"{len(text)} characters, {words} words")
    if config.max_characters is not None and len(text) > config.max_characters:
        return Failure("dropped", "long_caption", f"{len(text)} characters")
    return text

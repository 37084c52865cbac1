"""Cleans captions for storage: one line of NFC text, with HTML entities resolved, within the configured lengths.

Training cleans every caption again, for the tokenizer (`model.tokenizer.clean`). That is the only cleaning of captions that did
not pass through here: those of tars indexed by jobs/index.py, and those that `data.captions` takes from `json.*`.
"""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from collections.abc import Sequence

from pipeline.config import CaptionConfig
from pipeline.errors import Failure

_SPACE = re.compile(r"\s+")
_ENTITY = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[A-Za-z0-9]++;|[A-Za-z0-9]++(?![=;]))")
_WINDOWS = {code: html.unescape(f"&#{code};") for code in range(0x80, 0xA0) if not chr(code).isspace()}
"""Control characters that Windows-1252 text becomes if it is read as Latin-1: quotes and dashes, as browsers show &#146;."""
_DROPPED_CATEGORIES = {"Cc", "Cs"}  # control characters and halves of surrogate pairs
_EMPTY = Failure("dropped", "empty_caption", "the caption is empty")


def clean_captions(value: object, config: CaptionConfig) -> str | list[str] | Failure:
    """Returns the cleaned caption, or those of a list that may be stored; or the reason to drop the row.

    A list loses its empty captions and those of other lengths than configured. If it has no other, or if one is not UTF-8, its
    row is dropped.
    """
    if not isinstance(value, list):
        return clean_caption(value, config)
    outcomes = [clean_caption(item, config) for item in value]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    bad = next((failure for failure in failures if failure.reason == "bad_caption"), None)
    kept = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if bad is not None or not kept:
        others = [failure for failure in failures if failure.reason != _EMPTY.reason]
        return bad or (others[0] if others else _EMPTY)
    return kept


def clean_caption(value: object, config: CaptionConfig) -> str | Failure:
    """Returns the cleaned caption, or the reason to drop its row. Null and NaN are empty; bytes must be UTF-8."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            return Failure("dropped", "bad_caption", f"the caption is not UTF-8: {error.reason} at byte {error.start}")
    text = _cleaned(str(display_caption(value)))
    if _is_invisible(text):
        return _EMPTY
    words = len(text.split(" "))
    if len(text) < config.min_characters or words < config.min_words:
        return Failure("dropped", "short_caption", f"{len(text)} characters, {words} words")
    if config.max_characters is not None and len(text) > config.max_characters:
        return Failure("dropped", "long_caption", f"{len(text)} characters")
    return text


def is_empty(text: str) -> bool:
    """True for a caption of which nothing is left to see when it is cleaned."""
    return _is_invisible(_cleaned(text))


def _is_invisible(text: str) -> bool:
    return all(unicodedata.category(letter) == "Cf" for letter in text)  # e.g. zero-width spaces


def _cleaned(text: str) -> str:
    before = None
    while text != before and not (text.isascii() and text.isprintable() and "&" not in text):  # most captions are plain
        # Until nothing changes: crawls hold doubly escaped text, and a retried row, clean already, must stay as it is.
        before = text
        text = _SPACE.sub(" ", unicodedata.normalize("NFC", _ENTITY.sub(_character, text).translate(_WINDOWS)))
        text = "".join(letter for letter in text if unicodedata.category(letter) not in _DROPPED_CATEGORIES)
    return _SPACE.sub(" ", text).strip()


def _character(found: re.Match[str]) -> str:
    """The text of an entity. Without a semicolon, only whole words are entities, as in HTML's attributes: AT&TILDE is text."""
    entity = found[0]
    return html.unescape(entity) if entity[1] == "#" else html.entities.html5.get(entity[1:], entity)


def display_caption(value: object) -> str | list[str]:
    """Returns a caption as it came: null and NaN are empty, and U+FFFD stands for bytes that are not UTF-8."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [str(display_caption(item)) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None or value != value else str(value)  # only NaN differs from itself

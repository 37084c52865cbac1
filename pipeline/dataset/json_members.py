"""Reads the json member of a sample, so that the index of a tar and training take the same values from it.

In: a member's content, or a value in it. Out: its values by name, and the captions that a value holds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JsonMember:
    """An object of JSON.

    Attributes:
        values: by name.
        repeated: names that it holds several times, with values that differ: none of them is the right one.
    """

    values: dict[str, Any]
    repeated: frozenset[str]


def parse_member(content: str | bytes) -> JsonMember | None:
    """The object that a json member holds; None if it is no object, or cannot be read."""
    repeated = frozenset[str]()

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated  # of the outermost object, which is complete last
        found = dict(pairs)
        repeated = frozenset(name for name, value in pairs if found[name] != value) if len(found) < len(pairs) else frozenset()
        return found

    try:
        values = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return JsonMember({name: value for name, value in values.items() if name not in repeated}, repeated)


def caption_texts(value: Any) -> list[str] | None:
    """The captions in a value, with numbers as text and without null, NaN, infinity and blank text; None for anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(one is None or (isinstance(one, str | int | float) and not isinstance(one, bool)) for one in values):
        return None
    texts = [one if isinstance(one, str) else json.dumps(one) for one in values if _is_given(one)]
    return [text for text in texts if text.strip()]


def _is_given(value: Any) -> bool:
    """False for null, NaN and infinity, which JSON does not have."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))

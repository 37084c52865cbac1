"""Finds the class name of each label.

In: the labels of an image set, and a `ClassList`. Out: a `Naming`: label to name, and what is a guess in it; or a ConfigError.
In this order: pairs of label and name; names that are the labels themselves; the order of the classes. The order is a rule for
labels that are numbers, and a guess for folders, which is said beside the figures. Text labels of a column have no order.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pipeline.errors import ConfigError
from training.evaluation.class_list import IDENTIFIER, ClassList, Pairs, is_count, is_header, refuse_more_than_names

Kind = Literal["number", "folder", "text"]
INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0*)?")
"""A number of a class, as tables and json files spell it."""
_WORDNET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(\d+)\s*[\t,;:.)\]=|\s]\s*\S")
BEGINS_WITH_LABEL = re.compile(r"(?:n\d{8}|\d+)[-_.)][\s_-]*[^\W\d_]")
"""Names as folders of some data sets have them: `n02085620-Chihuahua`, `001.Black_footed_Albatross`."""
SHOWN = 3


@dataclass(frozen=True)
class Naming:
    """Class names.

    Attributes:
        names: label -> name. A name of the file without a label of its own is its own label.
        guess: what is guessed, as a sentence; empty if nothing is.
    """

    names: dict[str, str]
    guess: str = ""


def name_labels(given: ClassList, labels: Sequence[str], kind: Kind, subject: str) -> Naming:
    """Matches labels and names. Labels for which it finds no name are missing from the result.

    Args:
        labels: those that occur, and folders without images; sorted.
        subject: the image set, for messages.

    Raises:
        ConfigError: labels and names do not fit together, or the names have something around them.
    """
    naming = _match(given, labels, kind, subject)
    # Names that a tab or JSON sets apart, or that are the labels themselves, are what they are.
    if not given.explicit and not set(map(normalize, naming.names.values())) <= set(map(normalize, labels)):
        refuse_more_than_names(list(naming.names.values()), given.subject, given.listed)
    return naming


def _match(given: ClassList, labels: Sequence[str], kind: Kind, subject: str) -> Naming:
    by_key = _keys_of(labels)
    readings = _readings(given, labels, by_key)
    found = [_from_pairs(pairs, by_key, labels, given.subject) for pairs in readings]
    if found:
        one = next((label for label in labels if len({names[label] for names in found}) > 1), None)
        if one is not None:
            both = " or ".join(sorted({repr(names[one]) for names in found}))
            raise ConfigError(f"{given.subject}: may call {one} {both}; write lines of the label, a tab and the name alone")
        spaced = readings[0] not in given.readings and not given.explicit
        if spaced and identifiers(labels) == "numbers":  # "1 spot" is a name, or label 1 and its name
            return Naming(found[0], f"numbers were taken for labels, not for parts of the names: {_ends(found[0], labels)}")
        return Naming(found[0])
    if given.explicit:
        return Naming(_from_pairs(given.readings[0], by_key, labels, given.subject) if given.readings[0] else _two_names(given))
    names = given.names
    if kind != "number":
        if set(labels) <= set(names):
            return Naming({name: name for name in names})
        clear_keys = {key: label for key, label in by_key.items() if label}
        own = {clear_keys[normalize(name)]: name for name in names if normalize(name) in clear_keys}
        clear = max(Counter(map(normalize, names)).values()) == 1
        if clear and set(labels) <= set(own):
            back = {name: label for label, name in own.items()}
            return Naming({back[name] if name in back else name: name for name in names})
        if kind == "text":
            return Naming(
                {label: own[label] for label in labels if label in own} | {n: n for n in names if n not in own.values()}
            )
    _refuse_what_is_no_list(given, labels, by_key)
    return _by_number(given, labels, subject) if kind == "number" else _by_position(given, labels, subject)


def identifiers(labels: Sequence[str]) -> str:
    """Returns what labels are that say nothing as class names: numbers or WordNet ids; empty for others."""
    for kind, form in (("numbers", INTEGER), ("WordNet ids", _WORDNET)):
        if all(form.fullmatch(label) for label in labels):
            return kind
    return ""


def normalize(label: str) -> str:
    """Returns the form in which labels and names are compared: case, `_`, `-`, spaces, Unicode form and leading zeros aside."""
    if INTEGER.fullmatch(label.strip()):
        return str(as_integer(label))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return re.sub(r"[\s_-]+", "", text)


def as_integer(label: str) -> int:
    """Returns the number that a label of the form `INTEGER` spells."""
    return int(label.strip().partition(".")[0])


def some(names: Sequence[str]) -> str:
    """Returns the first few, for messages."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def _keys_of(labels: Sequence[str]) -> dict[str, str]:
    """Returns normal form -> label; "" where several labels have one normal form."""
    found: dict[str, str] = {}
    for label in labels:
        key = normalize(label)
        found[key] = "" if key in found else label
    return found


def _readings(given: ClassList, labels: Sequence[str], by_key: dict[str, str]) -> list[Pairs]:
    """Returns the readings as pairs that name every label, the likeliest first."""
    readings = list(given.readings)
    if given.spaced and all(IDENTIFIER.fullmatch(label) for label in labels):
        readings += [given.spaced, tuple((label.rstrip(":.)"), name) for label, name in given.spaced)]
    found = []
    for pairs in readings:
        keys = {label for label, _ in pairs}
        forms = set(map(normalize, keys))
        if all(label in keys or (by_key[normalize(label)] and normalize(label) in forms) for label in labels):
            found.append(pairs)
    return found


def _from_pairs(pairs: Pairs, by_key: dict[str, str], labels: Sequence[str], subject: str) -> dict[str, str]:
    """Returns label -> name of all pairs, also of those whose label does not occur."""
    exact, names = set(labels), dict[str, str]()
    for key, name in pairs:
        label = key if key in exact else by_key[normalize(key)] if by_key.get(normalize(key)) else key
        if names.setdefault(label, name) != name:
            raise ConfigError(f"{subject}: names {label} twice, {names[label]!r} and {name!r}; remove one")
    if not all(map(INTEGER.fullmatch, labels)) and all(map(INTEGER.fullmatch, names.values())):
        raise ConfigError(
            f"{subject}: gives numbers as names ({some([f'{label}: {name}' for label, name in names.items()])}); write lines "
            "of the label, a tab and the name"
        )
    return names


def _ends(names: dict[str, str], labels: Sequence[str]) -> str:
    """Returns the names of the first and the last label, for notes."""
    return f"{labels[0]} is {names[labels[0]]!r}, ..., {labels[-1]} is {names[labels[-1]]!r}"


def _two_names(given: ClassList) -> dict[str, str]:
    raise ConfigError(f"{given.subject}: gives one label several names; keep one of them")


def _refuse_what_is_no_list(given: ClassList, labels: Sequence[str], by_key: dict[str, str]) -> None:
    """Raises ConfigError if the lines hold more than names: what is beside the name would get into the prompts."""
    found = [match and int(match[1]) for match in map(_NUMBERED.match, given.names)]
    numbers = [number for number in found if number is not None]
    odd = next((name for name, number in zip(given.names, found, strict=True) if number is None), None)
    rule = ""
    if is_count(numbers) and odd is None and not set(by_key) <= set(map(str, numbers)):
        rule = f"its lines are numbered from {numbers[0]}, but these numbers are not the labels ({some(labels)})"
    elif _counts_most(found) and odd is not None:
        rule = f"most of its lines begin with a number that counts them, but {odd[:60]!r} does not"
    elif _counts_most(found):
        rule = f"its lines begin with the labels ({some(labels)}), and it is not clear where the names begin"
    if rule:
        raise ConfigError(f"{given.subject}: {rule}; write lines of the label, a tab and the name")
    begin = {normalize(label) for label, _ in given.spaced}
    for pairs in given.readings:
        begin |= {normalize(label) for label, _ in pairs}
    if set(by_key) <= begin:
        raise ConfigError(
            f"{given.subject}: its lines begin with the labels ({some(labels)}), and it is not clear where the names begin; "
            "write lines of the label, a tab and the name"
        )


def _counts_most(numbers: Sequence[int | None]) -> bool:
    """Returns True if at least half of the lines are numbered from 0 or 1, those without a number counted or not."""
    found = [(place, number) for place, number in enumerate(numbers) if number is not None]
    steps = [(next_[1] - one[1], next_[0] - one[0]) for one, next_ in pairwise(found)]
    return 2 * len(found) >= len(numbers) and bool(steps) and found[0][1] in (0, 1) and all(0 < a <= b for a, b in steps)


def _by_number(given: ClassList, labels: Sequence[str], subject: str) -> Naming:
    """Label n has the name in line n, counted from 0."""
    numbers = {label: as_integer(label) for label in labels}
    low, high, count = min(numbers.values()), max(numbers.values()), len(given.names)
    if low < 0:
        raise ConfigError(
            f"{subject}: holds the label {low}, but labels that count lines begin at 0; write lines of the label, a tab and "
            f"the name in {given.subject}, or remove those samples"
        )
    if is_header(given.names[0]) and count == high + 2:
        raise ConfigError(f"{given.subject}: line 1 looks like a header ({given.names[0]}), and would name class 0; remove it")
    in_lines = [normalize(name) for name in given.names]
    if all(INTEGER.fullmatch(name) for name in given.names) and in_lines != sorted(in_lines, key=int):
        raise ConfigError(
            f"{given.subject}: the names are numbers in another order than the labels; write lines of the label, a tab and the "
            "name"
        )
    if low == 1 and (high == count or high == len(numbers) == count - 1):
        raise ConfigError(
            f"{subject}: its labels begin at 1, and line 1 of {given.subject} is the name of label 0 ({count:,} names, labels "
            f"{low:,} to {high:,}); write lines of the label, a tab and the name"
        )
    own = {number: label for label, number in numbers.items()}
    names = {own[number] if number in own else str(number): name for number, name in enumerate(given.names)}
    if count <= high + 1:
        return Naming(names)
    ordered = sorted((label for label in labels if label in names), key=as_integer)
    return Naming(names, f"labels were matched with the lines of the names by number: {_ends(names, ordered)}")


def _by_position(given: ClassList, labels: Sequence[str], subject: str) -> Naming:
    """The folders in alphabetical order have the names in the order of the file, which is a guess."""
    names, forms = given.names, [normalize(label) for label in labels]
    remedy = "or lines of FOLDER, a tab and the name"
    if len(names) != len(labels):
        header = " (line 1 looks like a header)" if is_header(names[0]) else ""
        raise ConfigError(
            f"{subject}: holds {len(labels):,} folders of images, but {len(names):,} class names were given{header}; give one "
            f"for each, in alphabetical order of the folders, {remedy}"
        )
    elsewhere = [name for place, name in enumerate(names) if normalize(name) in forms and forms[place] != normalize(name)]
    if elsewhere:
        missing = sorted(
            set(labels) - {label for label, form in zip(labels, forms, strict=True) if form in map(normalize, names)}
        )
        raise ConfigError(
            f"{given.subject}: some names are those of folders, in another order ({some(elsewhere)}), but there is none for "
            f"{some(missing or list(labels))}; name every folder as it is called, {remedy}"
        )
    numbers = [int(form) for form in forms if INTEGER.fullmatch(form)]
    if len(numbers) == len(labels) and numbers != sorted(numbers):
        raise ConfigError(
            f"{given.subject}: the folders of {subject} are numbers, whose alphabetical order ({some(labels)}) is not that "
            "of the numbers; write lines of FOLDER, a tab and the name"
        )
    found = dict(zip(labels, names, strict=True))
    return Naming(found, f"class names were matched with the folders by position: {_ends(found, labels)}")

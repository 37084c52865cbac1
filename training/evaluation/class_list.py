"""Parses a file of class names or prompts, in any of the forms that people keep them in.

    tench                    a name a line, with or without quotes
    n01440764<TAB>tench      or a comma, a semicolon, a colon or a space: a label and its name; with or without a header
    ["tench", "goldfish"]    JSON or Python: a list, also as the only list of a Python file
    {"0": "tench"}           JSON or Python: label to name, name to number, or number to [label, name]

In: the text of a file. Out: a `ClassList`, which keeps every reading that the text allows; the labels decide between them
(training/evaluation/label_names.py). A form that nothing here reads is refused, so that its syntax never becomes a name.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.small_text import parse_json, split_lines, strip_marks

Pairs = tuple[tuple[str, str], ...]
HEADER_WORDS = frozenset(
    [
        *("category", "class", "class_id", "class_idx", "class_index", "class_label", "class_name", "classes", "classid"),
        *("classname", "classnames", "code", "description", "folder", "id", "idx", "index", "key", "label", "label_id"),
        *(
            "label_name",
            "labels",
            "name",
            "names",
            "number",
            "sign_name",
            "signname",
            "synset",
            "synset_id",
            "title",
            "wnid",
            "words",
        ),
    ]
)
MOST_CHARACTERS = 2000
IDENTIFIER = re.compile(r"(?=.*\d)\S+")
"""A label that is no word: a number, a WordNet id, a code."""
_LITERAL = re.compile(r"\s*(?:[\[{(]|\w+\s*=\s*[\[{(])")
_QUOTED = re.compile(
    r""""((?:[^"]|"")+)",?|'([^']+)',?|[\u201c\u201e]([^\u201c-\u201e]+)[\u201c\u201d],?|\u2018([^\u2018\u2019]+)\u2019,?"""
)
"""A line in quotes, also in those of word processors. A table doubles the quotes inside of its own."""
_TABLE_QUOTED = re.compile(r'"(?:[^"]|"")*(?:[,;\t]|"")(?:[^"]|"")*"')
"""A field that a table has to quote, and whose quotes are therefore the table's."""
_DIRECTIVE = re.compile(r'"?sep=.?"?', re.IGNORECASE)
"""The first line of a table for Excel."""
_MARK = re.compile(r"(?:->|=>|[-\u2013\u2014|])\s+")
"""Marks that people write between a label and its name."""
_MARKED_UP = r"<\w+>.*|.*<\w+\s?/?>|`.*`|\u00ab.*\u00bb|.*\s#\s.*|.*\\n"
"""Tags of HTML, marks of Markdown, other quotes, comments and line ends of source code around a text."""
_NO_NAME = re.compile(
    r"""[-*+\u2022\u2013\u2014>|]\s.*|[-=]>.*|.*[,;|]|(["']).*\1\s*:?.*|.*\d\s*[:=]\s.*"""
    r"|\w*\d\w*\s*[\uff0c\uff1a\uff1b\u3001\uff0e].*|.*/|\.{1,2}/.*|[-dl][-rwxsStT]{9}\b.*"
    rf"|{_MARKED_UP}"
)
"""Marks of lists, labels or quotes around names, full-width punctuation, and what `ls` and `find` print."""
_BEGINS_WITH_ID, _BEGINS_WITH_NUMBER = re.compile(r"n\d{8}\s+\S"), re.compile(r"\d+\s+\S")
_ENDS_WITH_NUMBER = re.compile(r"(.*?)[\s,;:=([]+(\d+)[)\]]?")
_NO_PROMPT = re.compile(
    r"""[fru]{0,2}(["']).*\1,?|.*\{\{.*|[-*\u2022]\s.*|.*,|.*\t.*|\d+\s*[.:=]\s.*|\d+\s*[,;|].*|\(?(?:\d+|[a-z])\)\s.*"""
    rf"|.*\$\{{.*|.*;[\d.]+|{_MARKED_UP}",
    re.IGNORECASE,
)
"""Lines of code, of lists in Markdown and of tables: what is around the prompt would get into it."""
_NUMBERED_PROMPT = re.compile(r"(\d+)\s+\S")
_CODE = re.compile(r"lambda\b.*:|(?:from|import)\s+\w+|def\s+\w+\(|\w+\s*=\s*\S*[\[({]|names\s*:\s*(?:$|[\[{])|nc\s*:\s*\d+$")


@dataclass(frozen=True)
class ClassList:
    """The content of a names file.

    Attributes:
        subject: begins messages; it names the file.
        names: one per class, in order; empty if the file can only be read as pairs.
        readings: every way to read it as (label, name) pairs, the likeliest first.
        explicit: the pairs are written as such (a tab, JSON), so the names stand for nothing else.
        listed: the names are those of a list in JSON or Python, which sets each of them apart.
        spaced: (label, name) if a space separates them, which may as well be part of a name.
    """

    subject: str
    names: tuple[str, ...]
    readings: tuple[Pairs, ...] = ()
    explicit: bool = False
    listed: bool = False
    spaced: Pairs = ()


def parse_class_list(text: str, subject: str) -> ClassList:
    """Parses a file of class names. Raises ConfigError for a form that is none of those above."""
    if _LITERAL.match(text):
        return _of_literal(_literal(text, subject), subject)
    lines = _names_of_a_table(plain_lines(text, subject), subject)
    tabbed = _has_tabs(lines, subject)
    readings: list[Pairs] = []
    for separator in "\t" if tabbed else (",", ";", ":", "=", "|"):
        split = _without_column_names([_split(line, separator) for line in lines])
        if all(all(pair) for pair in split):
            _refuse_several_columns(lines, separator, subject)
            readings += _both_ways(split)
    spaced = [tuple(line.split(None, 1)) for line in lines]
    pairs = _plain_names(tuple((pair[0], pair[1]) for pair in spaced if len(pair) == 2))
    return ClassList(
        subject=subject,
        names=() if tabbed else lines,
        readings=tuple(_refuse_repeated(pairs) for pairs in readings),
        explicit=tabbed,
        spaced=pairs if len(pairs) == len(lines) and not tabbed else (),
    )


def parse_prompts(text: str, subject: str) -> tuple[str, ...]:
    """Parses a file of prompts: one a line, or a list in JSON or Python. Raises ConfigError for other forms."""
    if re.match(r"""\s*(?:\[|\{\s*["']|\w+\s*=\s*[\[({])""", text):
        value = _unwrapped(_literal(text, subject))
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            raise ConfigError(f"{subject}: must be a list of prompts; write one prompt a line")
        return tuple(value)
    lines = plain_lines(text, subject)
    numbers = [int(found[1]) for found in map(_NUMBERED_PROMPT.match, lines) if found]
    odd = next((line for line in lines if _NO_PROMPT.fullmatch(line)), None)
    if odd is None and len(numbers) == len(lines) and is_count(numbers):
        odd = lines[0]
    if odd is not None:
        raise ConfigError(
            f"{subject}: {odd[:60]} is more than a prompt; write only its text, one prompt a line, or a JSON list if all of it "
            "is the prompt"
        )
    return lines


def plain_lines(text: str, subject: str) -> tuple[str, ...]:
    """Returns the lines, without quotes that are around all of them.

    Raises:
        ConfigError: a line in between is blank, so that a later one may be counted wrong; or the lines are not plain text.
    """
    lines = split_lines(text)
    for number, line in enumerate(lines, start=1):
        if not line:
            raise ConfigError(f"{subject}: line {number} is blank; write what belongs there, or remove the line")
        if "\ufffd" in line:
            raise ConfigError(
                f"{subject}: line {number} holds U+FFFD, in place of a character that a conversion lost; write it again"
            )
        if len(line) > MOST_CHARACTERS:
            raise ConfigError(f"{subject}: line {number} has {len(line):,} characters; write one entry a line")
        if _CODE.match(line):
            raise ConfigError(f"{subject}: line {number} is code ({line[:60]}); write only the text, one entry a line")
        if line.startswith("#"):
            raise ConfigError(
                f"{subject}: line {number} begins with #, as comments do; remove it, or write a JSON list if it is an entry"
            )
    if len(lines) > 1 and all(line.startswith("- ") for line in lines):
        raise ConfigError(f"{subject}: is a YAML list; write one entry a line, without the hyphens")
    return _unquoted(lines) or tuple(lines)


def refuse_more_than_names(names: Sequence[str], subject: str, listed: bool = False) -> None:
    """Raises ConfigError if something is left around the names, which would get into every prompt.

    Args:
        listed: a list sets the names apart, so that numbers in them are theirs unless they count the names.
    """
    decorated = names if all(_NO_NAME.fullmatch(name) for name in names) else [name for name in names if name.endswith(",")]
    ends = [found for found in map(_ENDS_WITH_NUMBER.fullmatch, names) if found]
    numbers = [int(found[2]) for found in ends]
    every = 1 < len(names) == len(numbers)
    counted = every and is_count(numbers) and len({found[1] for found in ends}) == len(names)
    if counted or (len(names) > 1 and all(map(_BEGINS_WITH_ID.match, names))):
        decorated = names
    remedy = "write lines of the label, a tab and the name"
    if not decorated and not listed and len(names) > 1:
        shuffled = every and len({*numbers}) == len(names) and numbers != sorted(numbers)
        begin = all(_BEGINS_WITH_ID.match(name) or _BEGINS_WITH_NUMBER.match(name) for name in names)
        if shuffled or begin:
            decorated, remedy = names, f"{remedy}, or a JSON list if these are the names"
    if decorated:
        raise ConfigError(f"{subject}: {decorated[0][:60]!r} is more than the name of a class; {remedy}")


def is_count(numbers: Sequence[int]) -> bool:
    """Returns True for numbers that count up from 0 or 1."""
    return len(numbers) > 1 and list(numbers) in ([*range(len(numbers))], [*range(1, len(numbers) + 1)])


def _unquoted(lines: Sequence[str]) -> tuple[str, ...]:
    """Returns what is inside of the quotes that are around every line; nothing if one has none."""
    found = [_QUOTED.fullmatch(line) for line in lines]
    if not all(found):
        return ()
    return tuple((match[1] or "").replace('""', '"') or match[match.lastindex or 0] for match in found if match)


def _names_of_a_table(lines: tuple[str, ...], subject: str) -> tuple[str, ...]:
    """Returns the lines without what a table writes around some of them: quotes around those with a comma.

    Raises:
        ConfigError: some lines are in quotes that no table needs, so they may be part of the names.
    """
    lines = lines[1:] if len(lines) > 1 and _DIRECTIVE.fullmatch(lines[0]) else lines
    odd = next((line for line in lines if _QUOTED.fullmatch(line) and not _TABLE_QUOTED.fullmatch(line)), None)
    if odd is not None:
        raise ConfigError(
            f"{subject}: {odd[:60]} is in quotes, but other lines are not; remove the quotes, or write a JSON list if they "
            "belong to the name"
        )
    return tuple(_unquoted([line])[0] if _TABLE_QUOTED.fullmatch(line) else line for line in lines)


def _has_tabs(lines: Sequence[str], subject: str) -> bool:
    """Returns True if a tab sets a label apart in every line. Raises ConfigError if only in some, or if there are two."""
    without = [line for line in lines if "\t" not in line]
    if without and len(without) < len(lines):
        raise ConfigError(
            f"{subject}: {without[0][:60]!r} has no tab, but other lines have one; remove it if it is a header, or write the "
            "label, a tab and the name"
        )
    if any(line.count("\t") > 1 for line in lines):
        raise ConfigError(f"{subject}: holds more than two columns; keep the label and the name, with a tab between them")
    return bool(lines) and not without


def _without_column_names(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the pairs without a first line of which one field is empty, as the column of row numbers has no name."""
    key, name = pairs[0] if pairs else ("", "")
    return pairs[1:] if len(pairs) > 1 and (not key or (not name and is_header(key))) else pairs


def _split(line: str, separator: str) -> tuple[str, str]:
    """Splits at the first separator outside of quotes."""
    fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    if len(fields) == 2:
        return strip_marks(fields[0]), strip_marks(fields[1])
    key, _, name = line.partition(separator)
    return strip_marks(key), strip_marks(name)


def _refuse_several_columns(lines: Sequence[str], separator: str, subject: str) -> None:
    counts = {len(next(csv.reader([line], delimiter=separator, skipinitialspace=True))) for line in lines}
    if len(lines) > 1 and len(counts) == 1 and counts.pop() > 2:
        raise ConfigError(
            f"{subject}: holds more than two columns with {separator!r} between them; keep the label and the name, or write "
            "a JSON list if these are names"
        )


def _plain_names(pairs: Pairs) -> Pairs:
    """Returns pairs without the mark, or the quotes, that all names have around them."""
    for form in (_MARK, _QUOTED):
        found = [form.fullmatch(name) if form is _QUOTED else form.match(name) for _, name in pairs]
        if pairs and all(found):
            texts = [name for _, name in pairs]
            names = _unquoted(texts) if form is _QUOTED else [match.string[match.end() :] for match in found if match]
            pairs = tuple((label, name) for (label, _), name in zip(pairs, names, strict=True))
    return pairs


def _both_ways(pairs: Sequence[tuple[str, str]]) -> Iterator[Pairs]:
    """Yields the pairs as label and name, then as name and label; without a header."""
    body = list(pairs[1:] if len(pairs) > 1 and is_header(*pairs[0]) else pairs)
    yield tuple(body)
    yield tuple((second, first) for first, second in body)


def is_header(*fields: str) -> bool:
    """Returns True for words that name columns, not classes."""
    return all(re.sub(r"[\s-]+", "_", field.strip().lower()) in HEADER_WORDS for field in fields)


def _refuse_repeated(pairs: Pairs) -> Pairs:
    """Returns the pairs, or none if a label has two names: then it is no label."""
    found: dict[str, str] = {}
    for label, name in pairs:
        if found.setdefault(label, name) != name:
            return ()
    return pairs


def _literal(text: str, subject: str) -> Any:
    """Returns the list or mapping that a text spells in JSON or Python."""
    try:
        return parse_json(text, subject)
    except ConfigError as error:
        if "twice" in str(error):
            raise
        as_json = error
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        raise as_json from None
    found: list[tuple[ast.stmt, Any]] = []
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr) and statement.value is not None:
            try:
                value = ast.literal_eval(statement.value)
            except (ValueError, TypeError, SyntaxError, RecursionError):
                continue
            if isinstance(value, list | tuple | dict):
                _refuse_repeated_keys(statement.value, subject)
                found.append((statement, value))
    if len(found) != 1:
        raise ConfigError(f"{subject}: is Python code with {len(found)} lists of plain text, not one; write one entry a line")
    statement, value = found[0]
    _refuse_use(tree, statement, subject)
    return list(value) if isinstance(value, tuple) else value


def _refuse_use(tree: ast.Module, written: ast.stmt, subject: str) -> None:
    """Raises ConfigError if code uses the list, which may change it: nothing here is run."""
    own = {node.id for node in ast.walk(written) if isinstance(node, ast.Name)}
    for statement in tree.body:
        if statement is not written and own & {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}:
            raise ConfigError(
                f"{subject}: line {statement.lineno} uses the list ({ast.unparse(statement)[:60]}), which is not run; write "
                "the list as it should be, and nothing else"
            )


def _refuse_repeated_keys(node: ast.expr, subject: str) -> None:
    keys = [ast.literal_eval(key) for key in node.keys if key is not None] if isinstance(node, ast.Dict) else []
    repeated = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if repeated is not None:
        raise ConfigError(f"{subject}: holds the key {repeated!r} twice; remove one")


def _unwrapped(value: Any) -> Any:
    """Returns what is inside of {"classnames": [...]}, or of the id2label of a Hugging Face configuration."""
    if isinstance(value, dict):
        if isinstance(value.get("id2label"), dict):
            return value["id2label"]
        if len(value) == 1 and isinstance(inner := next(iter(value.values())), list | dict):
            both_text = isinstance(inner, list) and len(inner) == 2 and next(iter(value)) in ("0", 0)
            return value if both_text else inner
    return value


def _of_literal(value: Any, subject: str) -> ClassList:
    value = _unwrapped(value)
    if isinstance(value, list):
        if not value or not all(isinstance(name, str) and strip_marks(name) for name in value):
            raise ConfigError(f"{subject}: a list of class names must hold text alone, and no empty name; correct it")
        return ClassList(subject, tuple(map(strip_marks, value)), listed=True)
    if not value:
        raise ConfigError(f"{subject}: is empty; write a name for each class")
    rows = [(_key(key), one) for key, one in value.items()]
    if all(isinstance(one, str) and one.strip() for _, one in rows):
        readings = [tuple((key, strip_marks(one)) for key, one in rows)]
        readings.append(tuple((name, key) for key, name in readings[0]))
    elif all(isinstance(one, int) and not isinstance(one, bool) for _, one in rows):
        readings = [tuple((str(one), key) for key, one in rows)]
    elif all(isinstance(one, list) and len(one) == 2 and all(isinstance(part, str) for part in one) for _, one in rows):
        # Two words are a label and its name if the first has the form of a label, or is one; else they may be two names.
        ids = all(IDENTIFIER.fullmatch(one[0]) for _, one in rows)
        readings = [tuple((key, one[1]) for key, one in rows) if ids else (), tuple((one[0], one[1]) for _, one in rows)]
    else:
        raise ConfigError(
            f"{subject}: must be a list of names or map each label to its name, as text; it holds other values; correct it"
        )
    return ClassList(subject, (), tuple(_refuse_repeated(pairs) for pairs in readings), explicit=True)


def _key(key: Any) -> str:
    return strip_marks(str(key))

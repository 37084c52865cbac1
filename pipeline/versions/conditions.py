"""Conditions of `curate.where` on sidecars: a data set's shards may come from tables with other columns and other types.

In: a condition in the syntax of pandas' `query`, and a shard's sidecar. Out: true or false for each row. A condition is read
here, part by part, and can only compare, calculate and convert the values of one row (docs/decisions/0019-values.md). Only the
columns that it names are converted. A column that this shard lacks, and another has, is null here.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.dataset.manifest import ShardRecord
from pipeline.errors import InputError
from pipeline.storage.base import Storage
from pipeline.versions.condition_values import (
    LISTS,
    NULLS,
    TEXT,
    ConditionError,
    alike,
    calculated,
    compared,
    contained,
    kind_of,
    text_remedy,
    true_where,
)

READ_BYTES = 1 << 16

Kind = tuple[tuple[str, str], ...]
"""Names and types of the columns that a condition may name."""

_TOKENS = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`([^`]*)`|([&|])|(\s+)""")
"""Text in quotes, a name in backticks, an operator that binds looser than in Python, white space."""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: operator.eq,
    ast.NotIn: operator.ne,
}
_CALCULATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_COMPARING = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "isin": "in"}
"""Methods of a column that compare, with the operators that do the same."""
_METHODS = ("abs", "astype", "clip", "fillna", "isna", "isnull", "notna", "notnull", "round")
"""Methods of a column that look at one value at a time. Those that look at all would see those of one shard."""
_FUNCTIONS = (
    *("abs", "ceil", "floor", "sqrt", "exp", "expm1", "log", "log10", "log1p", "sin", "cos", "tan", "arcsin", "arccos"),
    *("arctan", "arctan2", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh"),
)
"""Functions of numpy that pandas' `query` has."""


def named_columns(names: Iterable[str], condition: str) -> list[str]:
    """The columns that a condition may name."""
    return [name for name in names if name and name in condition]


def kinds_of_shards(storage: Storage, shards: Sequence[ShardRecord], condition: str) -> dict[Kind, ShardRecord]:
    """One shard for each combination of columns and types that the condition meets, by that combination."""

    def named(shard: ShardRecord) -> Kind:
        with storage.open(shard.sidecar_path, READ_BYTES) as file:
            schema = pq.read_schema(file)
        return tuple((name, str(schema.field(name).type)) for name in named_columns(schema.names, condition))

    kinds: dict[Kind, ShardRecord] = {}
    with ThreadPoolExecutor(16) as readers:
        for shard, kind in zip(shards, readers.map(named, shards), strict=True):
            kinds.setdefault(kind, shard)
    return kinds


def holds(frame: pd.DataFrame, condition: str, place: str, names: Sequence[str]) -> pd.Series:
    """Evaluates a condition for each row.

    Args:
        place: the sidecar's address, for the message.
        names: all columns that a condition may use, for the message.

    Raises:
        InputError: it cannot be evaluated on these columns, or is not true or false.
    """
    rest = f"write a condition on the columns {', '.join(names)}"
    try:
        answer = _Condition(frame, condition, names).answer()
    except ConditionError as error:
        raise InputError(f"curate.where={condition}: {error}, in {place}; {rest}") from None
    except Exception as error:  # pandas raises many kinds of errors for methods that do not fit the values
        words = set(re.findall(r"\w+|(?<=`)[^`]+(?=`)", condition))
        texts = {name: text_remedy(frame[name], name) for name in frame.columns if name in words}
        hints = [f"{name}: {hint}" for name, hint in texts.items() if hint]
        hint = f" ({'; '.join(hints)})" if hints else ""
        raise InputError(f"curate.where={condition}: {error}, in {place}{hint}; {rest}") from None
    return answer


class _Condition:
    """A condition that is read, on the columns of a frame."""

    def __init__(self, frame: pd.DataFrame, condition: str, names: Sequence[str]) -> None:
        """Raises ConditionError if the condition is no expression."""
        quoted: dict[str, str] = {}

        def plain(found: re.Match[str]) -> str:
            text, name, logical, _ = found.groups()
            if name is not None:
                return quoted.setdefault(name, f"_quoted_{len(quoted)}")
            return text or {"&": " and ", "|": " or ", None: " "}[logical]

        try:
            self._tree = ast.parse(_TOKENS.sub(plain, condition).strip(), mode="eval").body
        except SyntaxError as error:
            raise ConditionError(f"cannot be read ({error.msg})") from None
        self._frame, self._names, self._quoted = frame, names, {short: name for name, short in quoted.items()}

    def answer(self) -> pd.Series:
        """True or false for each row."""
        answer = true_where(self._value(self._tree), self._text(self._tree))
        if not isinstance(answer, pd.Series):
            raise ConditionError("is not true or false for each sample; write a comparison")
        return answer

    def _text(self, node: ast.expr) -> str:
        """The part of the condition that a node stands for, for messages."""
        return re.sub(r"_quoted_\d+", lambda found: f"`{self._quoted[found[0]]}`", ast.unparse(node))

    def _value(self, node: ast.expr) -> Any:
        """A column, a constant or a list of constants."""
        match node:
            case ast.Constant(value=str() | int() | float() | None):
                return node.value
            case ast.Name(id=name):
                return self._column(name)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [self._value(part) for part in parts]
            case ast.BoolOp(values=parts):
                combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return reduce(combine, [self._true_where(part) for part in parts])
            case ast.UnaryOp(op=ast.Not() | ast.Invert()):
                return np.logical_not(self._true_where(node.operand))
            case ast.UnaryOp() if type(node.op) in _CALCULATIONS:
                return _CALCULATIONS[type(node.op)](self._value(node.operand))
            case ast.BinOp() if type(node.op) in _CALCULATIONS:
                return self._calculated(node)
            case ast.Compare():
                return self._compared(node)
            case ast.Call(func=ast.Name(id=name)):
                return self._function(name, node)
            case ast.Call(func=ast.Attribute(value=owner, attr=name)):
                return self._method(owner, name, node)
            case ast.Subscript(value=ast.Attribute(value=owner, attr="str"), slice=place):
                return self._one_each(self._accessor(owner, "str")[_place(place)], node)
            case ast.Attribute(value=ast.Attribute(value=owner, attr="dt"), attr=name):
                return self._one_each(_public(self._accessor(owner, "dt"), name), node)
        raise ConditionError(f"{self._text(node)} is not part of a condition's language")

    def _true_where(self, node: ast.expr) -> Any:
        return true_where(self._value(node), self._text(node))

    def _column(self, name: str) -> Any:
        column = self._quoted[name] if name in self._quoted else name
        if column in self._frame:
            return self._frame[column]
        if column in self._names:
            raise ConditionError(f"the values of {column} are of a type that cannot be compared")
        if column in ("inf", "Inf"):
            return np.inf
        raise ConditionError(f"name {column!r} is not defined")

    def _calculated(self, node: ast.BinOp) -> Any:
        one, other = self._value(node.left), self._value(node.right)
        if isinstance(one, pd.Series):
            one, other = alike(one, other)
        elif isinstance(other, pd.Series):
            other, one = alike(other, one)
        elif isinstance(node.op, ast.Pow):
            one = float(one)  # integers have no limit
        return calculated(_CALCULATIONS[type(node.op)], one, other)

    def _compared(self, node: ast.Compare) -> Any:
        answers, left = [], node.left
        for operation, right in zip(node.ops, node.comparators, strict=True):
            names = self._text(left), self._text(right)
            if isinstance(operation, ast.Is | ast.IsNot):
                raise ConditionError(f"{names[0]} is {names[1]}: write {names[0]}.isnull() or {names[0]}.notnull()")
            one, other = self._value(left), self._value(right)
            if isinstance(operation, ast.In | ast.NotIn) and not isinstance(other, list):
                inside = contained(one, other, names)
                answers.append(inside if isinstance(operation, ast.In) else ~inside)
                left = right
                continue
            answers.append(compared(_COMPARISONS[type(operation)], one, other, names))
            left = right
        return reduce(np.logical_and, answers)

    def _function(self, name: str, node: ast.Call) -> Any:
        arguments = [self._value(argument) for argument in node.args]
        if name == "Timestamp":
            return pd.Timestamp(*arguments)
        if name not in _FUNCTIONS or node.keywords:
            raise ConditionError(f"{self._text(node)} is no function of a condition; there are {', '.join(_FUNCTIONS)}")
        return getattr(np, name)(*arguments)

    def _method(self, owner: ast.expr, name: str, node: ast.Call) -> Any:
        if isinstance(owner, ast.Attribute) and owner.attr in ("str", "dt"):
            method = _public(self._accessor(owner.value, owner.attr), name)
        elif name in _COMPARING and len(node.args) == 1 and not node.keywords:
            operation = ast.parse(f"a {_COMPARING[name]} b", mode="eval").body
            assert isinstance(operation, ast.Compare)
            return self._compared(ast.Compare(owner, operation.ops, node.args))
        elif name == "between" and len(node.args) == 2 and not node.keywords:
            return self._compared(ast.Compare(node.args[0], [ast.LtE(), ast.LtE()], [owner, node.args[1]]))
        else:
            column = self._value(owner)
            fills_from_others = name == "fillna" and (node.keywords or len(node.args) != 1)
            if not isinstance(column, pd.Series) or name not in _METHODS or fills_from_others:
                there = ", ".join((*_COMPARING, "between", *_METHODS, "str.*", "dt.*"))
                raise ConditionError(f"{self._text(node)} is no method of a condition; there are {there}")
            method = getattr(column, name)
            if name == "astype" and kind_of(column) == TEXT and "bool" in ast.unparse(node.args[0]):
                raise ConditionError(f"{self._text(node)}: every text is true; compare texts, as in {self._text(owner)} == 'a'")
        arguments = [self._value(argument) for argument in node.args]
        keywords = {str(keyword.arg): self._value(keyword.value) for keyword in node.keywords}
        return self._one_each(method(*arguments, **keywords), node)

    def _accessor(self, owner: ast.expr, name: str) -> Any:
        """The `str` or `dt` of a column; one of nulls has either."""
        column = self._value(owner)
        if not isinstance(column, pd.Series):
            raise ConditionError(f"{self._text(owner)}.{name}: {self._text(owner)} is no column")
        kind = kind_of(column)
        if kind == NULLS:
            column = column.astype(object if name == "str" else "datetime64[ns]")
        elif name == "str" and kind not in (TEXT, LISTS) and column.dtype != object:
            raise ConditionError(f"{self._text(owner)}.str: it holds {kind}; convert it, as in .astype('str').str")
        return getattr(column, name)

    def _one_each(self, value: Any, node: ast.expr) -> pd.Series:
        if not isinstance(value, pd.Series) or not value.index.equals(self._frame.index):
            raise ConditionError(f"{self._text(node)} does not give one value for each sample")
        return value


def _public(accessor: Any, name: str) -> Any:
    if name.startswith("_") or not hasattr(accessor, name):
        raise ConditionError(f".{name} is no method of text or dates")
    return getattr(accessor, name)


def _place(node: ast.expr) -> Any:
    """The constant, or the slice of constants, between square brackets."""
    if not isinstance(node, ast.Slice):
        return ast.literal_eval(node)
    return slice(*(None if part is None else ast.literal_eval(part) for part in (node.lower, node.upper, node.step)))

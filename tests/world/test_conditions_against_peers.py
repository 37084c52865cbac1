"""Random conditions on values of plain types keep the rows that pandas' `query` keeps, whose syntax `curate.where` has."""

import random

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.versions.condition_values import to_frame
from pipeline.versions.conditions import holds

ROWS = 40
NUMBERS, TEXTS = ("i", "j", "f"), ("s", "u")


def table(rng: random.Random) -> pa.Table:
    def column(draw, nulls=0.0):
        return [None if rng.random() < nulls else draw() for _ in range(ROWS)]

    return pa.table(
        {
            "i": column(lambda: rng.randint(-5, 5)),
            "j": column(lambda: rng.randint(-5, 5), nulls=0.3),
            "f": column(lambda: round(rng.uniform(-5, 5), 1), nulls=0.2),
            "s": column(lambda: rng.choice("abc")),
            "u": column(lambda: rng.choice(["a", "b", "aa"]), nulls=0.3),
            "b": column(lambda: rng.random() < 0.5),
        }
    )


def number(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice([*NUMBERS, str(rng.randint(-4, 4)), str(round(rng.uniform(-4, 4), 1))])
    if rng.random() < 0.2:
        return f"-{rng.choice(NUMBERS)}"
    return f"({number(rng, depth - 1)} {rng.choice('+-*')} {number(rng, depth - 1)})"


def comparison(rng: random.Random) -> str:
    sign, one, text = rng.choice(["<", "<=", ">", ">=", "==", "!="]), rng.choice(NUMBERS), rng.choice(TEXTS)
    low, high, within = rng.randint(-4, 0), rng.randint(0, 4), rng.choice(["in", "not in"])
    return rng.choice(
        [
            f"{one} {sign} {number(rng, 2)}",
            f"{text} {sign} '{rng.choice(['a', 'b', 'aa'])}'",
            f"{one} {within} [{low}, {high}]",
            f"{text} {within} ['a', 'b']",
            f"{one}.between({low}, {high})",
            f"{text}.isin(['a'])",
            f"{one}.isnull()",
            f"{low} < {one} <= {high}",
            "b",
        ]
    )


def condition(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return comparison(rng)
    if rng.random() < 0.3:
        return f"{rng.choice(['not ', '~'])}({condition(rng, depth - 1)})"
    return f"({condition(rng, depth - 1)}) {rng.choice(['and', 'or', '&', '|'])} ({condition(rng, depth - 1)})"


def compare_with_pandas(seed: int, count: int) -> None:
    rng = random.Random(seed)
    rows = table(rng)
    ours, theirs = to_frame(rows), rows.to_pandas()
    for _ in range(count):
        where = condition(rng, 3)
        wanted = theirs.eval(where, engine="python")
        assert isinstance(wanted, pd.Series)
        assert holds(ours, where, "s", []).tolist() == wanted.astype(bool).tolist(), f"seed {seed}: {where}"


def test_random_conditions_keep_what_pandas_keeps():
    compare_with_pandas(seed=0, count=150)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_conditions_keep_what_pandas_keeps(seed):
    compare_with_pandas(seed, 20_000)

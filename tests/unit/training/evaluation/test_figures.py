"""Intervals have the values of the literature, and rows and tables hold every figure with its bounds."""

from dataclasses import replace

import pytest

from training.evaluation.figures import flatten, headline, mean_of_shares, median, notes_of, share, table, wilson


def test_wilsons_interval_has_the_known_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for (hits, count), (low, high) in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_the_medians_interval_has_the_known_places():
    # Of 20 values the 6th and the 15th, of 50 the 18th and the 33rd (Conover, Practical Nonparametric Statistics).
    for count, (low, high) in {20: (6, 15), 50: (18, 33), 6: (1, 6), 5: (1, 5), 1: (1, 1)}.items():
        figure = median("m", list(range(1, count + 1)), 1.0)
        assert (figure.low, figure.high, figure.value) == (low, high, (count + 1) / 2)


def test_the_mean_over_classes_weighs_classes_alike_and_is_less_sure_of_small_ones():
    assert mean_of_shares("m", [1, 90], [2, 100], 0.5).value == pytest.approx(0.7)
    few, many = mean_of_shares("m", [1, 90], [2, 100], 0.5), mean_of_shares("m", [50, 90], [100, 100], 0.5)
    assert few.high - few.low > 2 * (many.high - many.low)
    assert mean_of_shares("m", [3, 0], [4, 0], 0.5) == share("m", 3, 4, 0.5)  # a class without a image says nothing
    one = mean_of_shares("m", [0, 0], [50, 50], 0.5)
    assert (one.low, one.value) == (0.0, 0.0)
    assert 0 < one.high < wilson(0, 50)[1]


def test_the_table_and_the_row_hold_every_figure_with_its_bounds():
    row = flatten([share("zero_shot_top1", 81, 263, 0.25)])
    assert set(row) == {
        "evaluation/zero_shot_top1",
        *(f"evaluation_bounds/zero_shot_top1_{one}" for one in ("low", "high", "chance")),
    }
    assert table(row).splitlines()[1].split() == ["zero_shot_top1", "0.3080", "0.2500", "0.2553", "to", "0.3662"]


def test_notes_are_of_the_figures_that_share_them_and_are_no_figures():
    row = flatten([replace(share(name, 1, 4, 0.25), notes=("a\nguess",)) for name in ("top1", "top5")])
    assert notes_of(row) == {"a guess": ["top1", "top5"]}
    assert headline(row) == {"top1": 0.25, "top5": 0.25}
    assert table(row).splitlines()[-1] == "* top1, top5: a guess"

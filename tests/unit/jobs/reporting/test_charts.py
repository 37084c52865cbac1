"""Charts of the report: what is drawn of the numbers, and what is not."""

import json

import numpy as np
import pytest

from jobs.reporting.charts import (
    POINTS,
    as_json,
    draw_curves,
    draw_distribution,
    draw_shares,
    draw_similarity,
    thin,
)


def test_a_thinned_curve_keeps_every_peak_and_the_mean_and_leaves_gaps():
    step, value = np.arange(1.0, 10_001.0), np.sin(np.arange(10_000.0) / 500)
    value[4321], value[77] = 1000.0, -1000.0
    value[5000:6000] = np.nan
    curve = thin("loss", step, value)
    assert len(curve.step) <= POINTS
    assert np.nanmax(curve.high) == 1000.0
    assert np.nanmin(curve.low) == -1000.0
    assert np.isnan(curve.value[400:450]).all(), "no line where there is no number"
    run_of = int(np.ceil(10_000 / POINTS))
    assert curve.value[0] == pytest.approx(value[:run_of].mean())
    assert curve.step[0] == pytest.approx(step[:run_of].mean())
    few = thin("loss", step[:5], value[:5])
    assert few.value.tolist() == few.low.tolist() == few.high.tolist() == value[:5].tolist()
    assert thin("loss", step[:0], value[:0]).value.tolist() == []


def test_curves_over_the_same_steps_share_a_source_and_a_single_one_needs_no_legend():
    steps = np.arange(1.0, 4.0)
    curves = [thin(name, steps, np.array(values)) for name, values in (("a", [1.0, 2.0, 3.0]), ("b", [3.0, np.nan, 1.0]))]
    chart = draw_curves(curves, marks=[2])
    assert [label for label, _ in chart.legend] == ["a", "b"]
    assert len({renderer.data_source.id for renderer in chart.plot.renderers if hasattr(renderer, "data_source")}) == 1
    assert draw_curves(curves[:1]).legend == ()


def test_shares_fill_the_bar_and_name_their_percentages():
    chart = draw_shares([("training", 3.0), ("evaluation", 1.0)])
    assert [label for label, _ in chart.legend] == ["training 75.0%", "evaluation 25.0%"]
    assert [bar.data_source.data["right"][0] for bar in chart.plot.renderers] == [0.75, 1.0]
    assert draw_shares([("training", 0.0)]).legend[0][0] == "training 0.0%"


def test_a_histogram_counts_every_value_and_few_whole_numbers_have_a_bar_each():
    values = np.array([3, 3, 5, 9])
    (bars,) = draw_distribution(values, "tokens", mark=7).plot.renderers
    assert sum(bars.data_source.data["top"]) == len(values)
    assert len(bars.data_source.data["top"]) == 7
    (bars,) = draw_distribution(np.linspace(0, 1000, 500), "px").plot.renderers
    assert sum(bars.data_source.data["top"]) == 500


def test_unknown_similarities_are_gaps_and_every_chart_becomes_json():
    chart = draw_similarity([[0.5, None], [0.25, 1.0]], ["a", "b"])
    assert [label for label, _ in chart.legend] == ["0.25", "0.62", "1.00"]
    assert json.loads(json.dumps(as_json({"map": chart})))["map"]["root_id"]

"""The page of a report: figures with intervals, a bounded size, and other people's text as text."""

import json

from jobs.reporting.page import bounds_of, evaluation_values, figures_of, render
from jobs.reporting.run_data import RunReport, parse_record
from tests.support.reports import HOSTILE, charts_of, hostile_report, report_of


def test_whatever_was_evaluated_is_shown_with_its_interval_and_oddities_are_left_out():
    rows = [
        {
            "step": step,
            "evaluation/probe_accuracy": value,
            "evaluation/probe_accuracy_low": value - 0.1,
            "evaluation/probe_accuracy_ci_high": value + 0.1,
            "evaluation/image_to_text_r1": value,
            "evaluation_bounds/image_to_text_r1_low": value - 0.2,
            "evaluation_bounds/image_to_text_r1_high": value + 0.2,
            "evaluation_bounds/image_to_text_r1_chance": 0.015625,
            "evaluation/median_rank": 30 - step,
            "evaluation/lowest_low": 0.5,
            "evaluation/note": "words",
            "evaluation/nothing": None,
        }
        for step, value in ((10, 0.4), (20, 0.7), (30, 0.6))
    ]
    report = report_of(evaluations=rows)
    figures = {figure.name: figure for figure in figures_of(report)}
    assert set(figures) == {"probe_accuracy", "image_to_text_r1", "median_rank", "lowest_low"}
    assert figures["image_to_text_r1"].last == (30, "0.600", "0.400 – 0.800")
    assert (figures["image_to_text_r1"].chance, figures["median_rank"].chance) == ("0.016", "")
    assert figures["probe_accuracy"].last == (30, "0.600", "0.500 – 0.700")
    assert figures["probe_accuracy"].best == (20, "0.700", "0.600 – 0.800")
    assert figures["median_rank"].best == (30, "0.000", ""), "a lower rank is better"
    assert set(bounds_of(evaluation_values(report))) == {"probe_accuracy", "image_to_text_r1"}
    page = render(report)
    assert {"evaluation/probe", "evaluation/image_to_text"} <= set(charts_of(page))
    assert "0.400 – 0.800" in page
    assert "chance 0.016" in page


def test_what_a_figure_rests_on_stands_beside_it():
    row = {"step": 3, "evaluation/zero_shot_top1": 0.5, "evaluation_notes/zero_shot_top1": "names by <position>"}
    page = render(report_of(evaluations=[row]))
    assert "* zero_shot_top1: names by &lt;position&gt;" in page
    assert "top1 *" in page
    del row["evaluation_notes/zero_shot_top1"]
    assert "top1 *" not in render(report_of(evaluations=[row]))


def test_a_hundred_thousand_steps_are_a_small_page_that_says_what_a_point_is():
    keys = ("loss", "loss_image_to_text", "loss_text_to_image", "temperature", "learning_rate", "grad_norm", "grad_norm_image")
    keys += (
        "grad_norm_text",
        "grad_norm_logit_scale",
        "samples_per_s",
        "compute_s",
        "data_wait_s",
        "communication_s",
        "goodput",
    )
    numbers = ", ".join(f'"{key}": 0.123456' for key in keys[1:])
    lines = [f'{{"step": {step}, "samples_seen": {step * 32}, "loss": {step % 997}, {numbers}}}' for step in range(1, 100_001)]
    lines[50_000] = lines[50_000].replace('"temperature": 0.123456', '"temperature": null')  # a step that was no number
    steps, _ = parse_record("\n".join(lines).encode(), [])
    page = render(RunReport("name", "runs/name", "", steps, [], starts=[], result=None, pairs=None, looks=[]))
    assert len(page) < 2_500_000
    assert "100,000 logged steps" in page
    assert "A point of a curve is the mean of 125 of them" in page


def test_other_peoples_text_is_text_in_the_page():
    page = render(hostile_report())
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>bold" not in page
    assert page.count("{{ 7 * 7 }}") >= 5
    assert "Content-Security-Policy" in page
    assert HOSTILE in json.dumps(charts_of(page), ensure_ascii=False), "the charts have it whole"

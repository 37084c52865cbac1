"""Figures, aims, verdicts and the table of them."""

import pytest

from jobs.qualification.judgement import ON_CUDA, ON_HOPPER, Aim, Figure, Outcome, misses, table

H200, GAMING = "cuda: NVIDIA H200", "cuda: NVIDIA GeForce RTX 4070"


@pytest.mark.parametrize(
    ("aim", "value", "card", "verdict"),
    [
        (None, 1.0, H200, ""),
        (Aim(least=7000, on=ON_HOPPER), 7000.0, H200, "met"),
        (Aim(least=7000, on=ON_HOPPER), 6999.0, H200, "missed"),
        (Aim(least=7000, on=ON_HOPPER), 900.0, GAMING, "not judged"),
        (Aim(least=1.5, on=ON_CUDA), 1.4, GAMING, "missed"),
        (Aim(least=1.5, on=ON_CUDA), 1.4, "cpu", "not judged"),
        (Aim(most=0), 1, "cpu", "missed"),
        (Aim(0.85, 1.0), 1.01, "cpu", "missed"),
        (Aim(0.85, 1.0), 0.9, "cpu", "met"),
        (Aim(most=0), "nothing fits", "cpu", "missed"),
        (Aim(most=0.1), float("nan"), "cpu", "missed"),
    ],
)
def test_an_aim_judges_the_cards_that_it_is_for(aim, value, card, verdict):
    assert Figure("rate", value, aim=aim).verdict(card) == verdict


@pytest.mark.parametrize(
    ("value", "text"), [(12345.678, "12,346"), (1.23456, "1.235"), (4, "4"), (0.00012, "0.00012"), ("x", "x")]
)
def test_a_value_is_shown_with_four_digits(value, text):
    assert str(Figure("rate", value)) == text


@pytest.mark.parametrize(
    ("aim", "text"), [(Aim(least=7000), ">= 7,000"), (Aim(most=0.02), "<= 0.02"), (Aim(0.85, 1), "0.85 to 1")]
)
def test_an_aim_is_shown_as_a_bound(aim, text):
    assert str(aim) == text


def outcomes():
    ratio = Figure("ours over theirs", 1.2, "x", Aim(least=1.5, on=ON_CUDA))
    return [
        Outcome("step", "done", card=H200, figures=[ratio, Figure("rate", 7123.0, "pairs/s")]),
        Outcome("loss", "timed out", card=H200, reason="after 120 s", figures=[Figure("tile 4,096", 1.5, "ms")]),
        Outcome("gpu-tests", "skipped", card=H200, reason="No module named 'pytest'"),
        Outcome("trainer", "not run"),
    ]


def test_the_table_ends_with_what_missed_its_aim_and_what_did_not_end():
    lines = table(outcomes()).splitlines()
    assert "| step      | ours over theirs " in lines[2]
    assert lines[2].endswith("| >= 1.5 | missed  |")
    assert any("timed out" in line and "after 120 s" in line for line in lines)
    assert any(line.startswith("| trainer") and "not run" in line for line in lines)
    assert lines[-3:] == ["missed:", "- step: ours over theirs = 1.2 x, aim >= 1.5", "- loss: timed out: after 120 s"]
    assert misses(outcomes()[2:]) == []
    assert table(outcomes()[2:]).endswith("no aim was missed")


def test_an_outcome_survives_its_file():
    for one in outcomes():
        assert Outcome.from_json(one.as_json()) == one

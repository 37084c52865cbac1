"""A side that does not fit is tried with less; test_qualify.py runs the sections."""

import sys

import pytest
import torch

from jobs.benchmarks.step_sides import Setting
from jobs.benchmarks.training_step import Measured
from jobs.qualification import step_speed
from jobs.qualification.scale import Scale

TINY = Scale("cpu", tiny=True)


def best(monkeypatch, fits, sides=("ours", "open_clip")):
    """The figures where a step of so many pairs at a time fits, and takes a second for each eight."""
    tried = []

    def measure(setting, _source, _rounds, _steps, names):
        at_a_time = setting.micro_batch_size or setting.batch_size
        tried.append((names[0], at_a_time))
        if at_a_time > fits:
            raise torch.OutOfMemoryError
        return {names[0]: Measured(1.0, (setting.batch_size / 8,), 1 << 30)}

    monkeypatch.setattr(step_speed, "measure", measure)
    monkeypatch.setattr(step_speed, "installed_sides", lambda: sides)
    monkeypatch.setattr(step_speed, "fitting_micro_batch", lambda _setting: None)
    return list(step_speed._best(TINY, "debug-vit", 64, least_ratio=1.5, least_rate=7)), tried


def test_ours_takes_fewer_pairs_at_a_time_and_open_clip_a_smaller_batch(monkeypatch):
    figures, tried = best(monkeypatch, fits=40)
    assert tried == [("ours", 64), ("ours", 48), ("ours", 36), ("open_clip", 64), ("open_clip", 32)]
    found = {figure.name: figure.value for figure in figures}
    assert found["ours: did not fit; pairs at a time"] == 36
    assert found["open_clip: did not fit; pairs at a time"] == 32
    assert found["best of ours"] == 8
    assert found["best of ours over best of open_clip's"] == 1


def test_without_open_clip_our_side_is_measured_alone(monkeypatch):
    figures, tried = best(monkeypatch, fits=64, sides=("ours",))
    assert [side for side, _ in tried] == ["ours"]
    assert figures[-1].value == "not installed: no comparison"


@pytest.mark.parametrize(("module", "sides"), [({}, ("ours",)), (sys, ("ours", "open_clip"))])
def test_open_clip_is_a_side_where_it_is_installed(monkeypatch, module, sides):
    monkeypatch.setitem(sys.modules, "open_clip", module or None)
    assert step_speed.installed_sides() == sides


def test_a_batch_that_does_not_fit_both_sides_is_halved_for_both(monkeypatch):
    tried = []

    def measure(setting, _source, _rounds, _steps, names):
        tried.append(setting.batch_size)
        if setting.batch_size > 20:
            raise torch.OutOfMemoryError
        return {name: Measured(1.0, (1.0,), 1 << 30) for name in names}

    monkeypatch.setattr(step_speed, "measure", measure)
    monkeypatch.setattr(step_speed, "installed_sides", lambda: ("ours", "open_clip"))
    figures = list(step_speed._side_by_side(TINY, Setting("debug-vit", 64)))
    assert tried == [64, 32, 16]
    assert (figures[0].name, figures[0].value) == ("pairs a step", 16)


def test_a_model_of_which_nothing_fits_is_an_error_in_the_end(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError, match="debug-vit: 2 pairs do not fit"):
        best(monkeypatch, fits=0)

"""A tower that is not compiled, or compiled again, misses the aims; test_qualify.py runs the section."""

import contextlib

from jobs.benchmarks.step_batches import ReadyBatches
from jobs.benchmarks.step_sides import Setting
from jobs.qualification.compiled_towers import WARM_UP_STEPS, _variant


def verdicts(setting, source):
    return {figure.name: figure.verdict("cpu") for figure in _variant("plain", setting, source, 2)}


def test_a_tower_without_a_graph_misses_its_aim():
    setting = Setting("debug-vit", 4, backend="eager")
    found = verdicts(setting, ReadyBatches(setting, WARM_UP_STEPS + 2))
    assert found["plain: graphs"] == "missed"
    assert found["plain: more graphs in 2 steps"] == "met"


def test_a_tower_that_is_compiled_again_misses_the_aim():
    setting = Setting("debug-vit", 4, compile=True, backend="eager")
    batches = ReadyBatches(setting, WARM_UP_STEPS + 2)

    @contextlib.contextmanager
    def laid_out_differently_at_last(side):
        with batches(side) as each:
            numbered = enumerate(each)
            yield ((one.contiguous() if number >= WARM_UP_STEPS else one, texts) for number, (one, texts) in numbered)

    found = verdicts(setting, laid_out_differently_at_last)
    assert found["plain: graphs"] == "met"
    assert found["plain: more graphs in 2 steps"] == "missed"

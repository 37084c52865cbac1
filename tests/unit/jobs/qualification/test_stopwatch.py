"""Seconds of a function."""

import time

from jobs.qualification.stopwatch import seconds_of


def test_the_first_call_is_not_counted():
    calls = []

    def slow_at_first():
        calls.append(len(calls))
        time.sleep(0.2 if len(calls) == 1 else 0.01)

    assert 0.01 <= seconds_of(slow_at_first, "cpu", repeats=3) < 0.1
    assert len(calls) == 4

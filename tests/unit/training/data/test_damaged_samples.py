"""Damaged samples are logged and counted, up to a limit, or end the run with the key that would skip them."""

import logging

import pytest

from pipeline.dataset.manifest import ManifestError
from training.data.damaged_samples import NAMED, DamagedSamples, damage_error


def test_the_error_names_the_key_that_skips_such_samples():
    assert str(damage_error("0.tar: sample a: cut")) == "0.tar: sample a: cut (or skip such samples: data.on_damage=skip)"


def test_skipped_samples_are_counted_and_one_more_than_allowed_is_an_error():
    damaged = DamagedSamples(2, "rank 3")
    damaged.skip("a")
    damaged.skip("b")
    assert damaged.skipped == 2
    with pytest.raises(ManifestError, match=r"data\.max_skipped_samples=2: one more sample on rank 3 is damaged \(c\)"):
        damaged.skip("c")


def test_the_first_skipped_samples_are_logged_one_by_one_and_later_every_hundredth(caplog):
    damaged = DamagedSamples(1000)
    with caplog.at_level(logging.WARNING):
        for number in range(250):
            damaged.skip(f"sample {number}")
    assert len(caplog.records) == NAMED + 2
    assert caplog.records[0].message == "skipped damaged sample no. 1: sample 0"

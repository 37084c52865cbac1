"""The benchmark of the data loader: how evenly batches mix, and one side on a small data set."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.benchmarks.data_loading import BATCH, _compare, _measure, _ours, design_effect, mixing
from jobs.benchmarks.stored_tars import index, write_tars


def order_of(samples: np.ndarray, batch: int) -> SimpleNamespace:
    return SimpleNamespace(
        epoch_samples=len(samples),
        steps_per_epoch=len(samples) // batch,
        layout=SimpleNamespace(global_batch_size=batch),
        step_samples=lambda _epoch, step: samples[step * batch : (step + 1) * batch],
    )


def test_a_full_shuffle_has_a_design_effect_of_one_and_the_sorted_order_a_large_one():
    samples = np.arange(20_000)
    shuffled = np.random.default_rng(0).permutation(samples)
    assert design_effect(order_of(shuffled, 100), 20, 1) == pytest.approx(1, abs=0.15)
    assert design_effect(order_of(samples, 100), 20, 1) > 50


def test_the_table_of_mixing_has_a_line_for_each_layout():
    lines = mixing(num_samples=200_000, num_categories=100).splitlines()
    assert len(lines) == 2 + 2 * 4


def test_ratios_are_of_pairs_of_runs():
    found = {side: [{"cpu_ms": cost}] for side, cost in (("raw", 1.0), ("raw-webdataset", 3.0), ("raw-ray", 2.0))}
    lines = _compare(found | {"decoded": [{"cpu_ms": 4.0}], "decoded-webdataset": [], "decoder": [{"cpu_ms": 4.0}]})
    assert [line.split()[-2] for line in lines] == ["3.00x", "2.00x", "1.00x"]


def test_our_sides_yield_samples_of_a_small_data_set(tmp_path):
    import os

    write_tars(tmp_path / "tars", ["a thing"] * BATCH, shard_samples=BATCH)
    index(str(tmp_path / "tars"), str(tmp_path / "data"))
    assert list(itertools.islice(_ours(str(tmp_path / "data"), False, 0), 2)) == [BATCH, BATCH]
    cost = _measure(itertools.cycle([2_048]), 4_096, os.getpid())
    assert cost["samples_per_s"] > 0

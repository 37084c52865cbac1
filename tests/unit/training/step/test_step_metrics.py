"""A step's metrics: sums, means and maxima over ranks, under the names of metrics.jsonl."""

from dataclasses import fields

import pytest
import torch

from tests.support.runs import ALONE, EXACT
from training.clock import Lap
from training.loss import ContrastiveResult
from training.step import step_metrics
from training.step.step_metrics import StepMetrics, gather_totals, rank_shares

LAP = Lap(samples_per_s=8.0, train_s=4.0, step_s=2.0, data_wait_s=0.5, communication_s=0.25, stopped_s={})


def result_of(*shares):
    return ContrastiveResult(torch.tensor(1.0), *(torch.tensor(share) for share in shares))


def metrics_of(**changes):
    return StepMetrics(**({field.name: 0 for field in fields(StepMetrics)} | changes))


def test_shares_and_counts_are_summed_over_ranks_and_times_averaged_with_the_slowest(monkeypatch):
    def two_ranks(own, world):
        other = own.clone()
        other[6] += 1.0  # it waits longer for data
        return torch.stack([own, other])

    monkeypatch.setattr(step_metrics, "all_ranks", two_ranks)
    shares = rank_shares(result_of(1.0, 2.0, 0.25, 0.125), ALONE)
    totals = gather_totals(shares, skipped_samples=3, fingerprint=2**40 + 1, lap=LAP, world=ALONE)
    assert (totals.loss_image_to_text, totals.loss_text_to_image, totals.loss) == (2.0, 4.0, 3.0)
    assert (totals.batch_accuracy_image_to_text, totals.batch_accuracy_text_to_image) == (0.5, 0.25)
    assert (totals.skipped_samples, totals.batch_fingerprint) == (6, 2**41 + 2), "sums stay exact"
    assert (totals.data_wait_s, totals.slowest_data_wait_s) == (1.0, 1.5)
    assert totals.compute_s == totals.slowest_compute_s == pytest.approx(1.25)
    assert totals.communication_s == totals.slowest_communication_s == 0.25


def test_a_row_has_the_names_of_the_record_and_no_accuracy_of_a_loss_without_columns():
    row = metrics_of(loss=2.5, batch_accuracy_text_to_image=0.5).as_row()
    assert list(row)[:4] == ["step", "samples_seen", "epoch", "loss"]
    assert set(EXACT) <= set(row)
    without = metrics_of(batch_accuracy_text_to_image=None).as_row()
    assert set(row) - set(without) == {"batch_accuracy_text_to_image"}

"""Metrics that a training run publishes for a monitoring system: rank 0's rows, and its checkpoints.

In: rows of the record, as they are written. Out: gauges of Ray's (pipeline/metrics.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.metrics import Metric, Publisher, Table
from training.evaluation.figures import headline


def _gauge(name: str, unit: str, description: str, *labels: str) -> Metric:
    return Metric(f"rayclip_train_{name}", "gauge", unit, description, ("run", *labels))


TRAINING: Table = {
    "step": _gauge("step", "", "Optimizer steps done"),
    "total_steps": _gauge("planned_steps", "", "Optimizer steps of the whole run"),
    "samples_seen": _gauge("samples_seen", "", "Samples seen, over all epochs"),
    "epoch": _gauge("epoch", "", "Epoch of the last step, from 0"),
    "time": _gauge(
        "last_step_timestamp_seconds",
        "seconds",
        "When the last step was recorded, or the workers were ready for one, since 1970",
    ),
    "loss": _gauge("loss", "", "Contrastive loss of the global batch"),
    "temperature": _gauge("temperature", "", "What similarities are divided by"),
    "learning_rate": _gauge("learning_rate", "", "Learning rate of the last step"),
    "grad_norm": _gauge("gradient_norm", "", "Norm of the whole gradient, before it is limited"),
    "samples_per_s": _gauge("samples_per_second", "", "Samples a second, of all workers, without evaluation and checkpoints"),
    "data_wait_share": _gauge("data_wait_ratio", "ratio", "Share of a step that is waiting for data, mean of the workers"),
    "data_wait_s": _gauge("data_wait_seconds", "seconds", "Waiting for data in a step, mean of the workers"),
    "compute_s": _gauge("compute_seconds", "seconds", "Computing in a step, mean of the workers"),
    "communication_s": _gauge("communication_seconds", "seconds", "Waiting for other workers in a step, mean of the workers"),
    "goodput": _gauge("goodput_ratio", "ratio", "Share of the run's whole time that was spent on steps that count"),
    "skipped_samples": _gauge("skipped_samples", "", "Damaged samples that were replaced, since the workers started"),
    "skipped_steps": _gauge("skipped_steps", "", "Steps skipped for a non-finite loss or gradient"),
    "world_size": _gauge("workers", "", "Workers that train"),
    "starts": _gauge("starts", "", "How often the run's workers were started"),
    "checkpoint_step": _gauge("checkpoint_step", "", "Step of the last checkpoint"),
    "checkpoint_time": _gauge("checkpoint_timestamp_seconds", "seconds", "When the last checkpoint was committed, since 1970"),
    "evaluation": _gauge("evaluation", "", "A figure of the last evaluation", "figure"),
}
"""Key in a row of the record -> gauge; the last three are in no row."""


def publish_row(row: Mapping[str, Any], publisher: Publisher) -> None:
    """Sets the gauges of a row's keys. A value of None keeps the last one."""
    for key, value in row.items():
        if key in TRAINING and value is not None:
            publisher.set(key, value)
    for figure, value in headline(row).items():
        publisher.set("evaluation", value, figure=figure)

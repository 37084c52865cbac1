"""The errors that end a training run."""

from __future__ import annotations


class RunError(RuntimeError):
    """The run cannot continue, and restarting it would not help. The message says what happened and what to do."""


class EvaluationFailedError(RunError):
    """An evaluation failed on every rank, after the run was saved."""

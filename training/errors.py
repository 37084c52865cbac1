"""The error that ends a training run."""

from __future__ import annotations


class RunError(RuntimeError):
    """The run cannot continue, and restarting it would not help. The message says what happened and what to do."""

"""Exceptions for bad input from a person, and `Failure`, the reason why one row did not become a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["success", "failed_to_read", "failed_to_download", "failed_to_resize", "dropped"]


class InputError(ValueError):
    """User-supplied data (a table, a file, a data set, a storage) breaks a rule.

    The message says: subject = value: the rule it breaks; what to do.
    """


class ConfigError(InputError):
    """A key of the configuration, or an option of a command, breaks a rule. The message has the same form."""


class StorageError(InputError):
    """A storage cannot be reached or used. The message says: address: the rule; what to do."""


class StorageAwayError(StorageError):
    """S3 does not answer or reports an internal error, or a disk is full: the same request may work later."""


class ReplacedError(StorageError):
    """An open object has been replaced."""


class WorkerDiedError(Exception):
    """Workers died over the same unit of work again and again. The message says: unit: what happened; what to do.

    What is committed stays, and the same command tries the unit again.
    """


class NotMeantError(Exception):
    """A job is done, but its result is not what was meant: its exit code is neither that of a success nor of a failure.

    What is committed stays, and the same command would give the same result. The message says: figures: the rule; what to do.
    """


@dataclass(frozen=True)
class Failure:
    """The reason why a row did not become a sample.

    Attributes:
        status: the stage that failed (docs/decisions/0001-manifest.md).
        reason: one word, by which failures are counted.
        message: for people; without secrets and newlines.
    """

    status: Status
    reason: str
    message: str

"""Bad input from a person, as exceptions; and why one row did not become a sample, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["success", "failed_to_download", "failed_to_resize", "dropped"]


class InputError(ValueError):
    """Data that a person gave (a table, a file, a data set, a storage) breaks a rule.

    The message says: subject = value: the rule it breaks; what to do.
    """


class ConfigError(InputError):
    """A key of the configuration, or an option of a command, breaks a rule. The message has the same form."""


class StorageError(InputError):
    """A storage cannot be reached or used. The message says: address: the rule; what to do."""


class StorageAwayError(StorageError):
    """S3 does not answer, or has trouble of its own: the same may work later."""


class ReplacedError(StorageError):
    """An object that is open has been written anew."""


@dataclass(frozen=True)
class Failure:
    """Why a row did not become a sample.

    Attributes:
        status: which of the stages said no (docs/decisions/0001-manifest.md).
        reason: one word that is counted.
        message: for people; holds no secret and no newline.
    """

    status: Status
    reason: str
    message: str

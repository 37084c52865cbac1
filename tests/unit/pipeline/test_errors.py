"""Every error of bad input can be caught as one, and travels between processes."""

import pickle

import pytest

from pipeline.dataset.manifest import ManifestError
from pipeline.errors import ConfigError, Failure, InputError, ReplacedError, StorageAwayError, StorageError


@pytest.mark.parametrize("kind", [ConfigError, StorageError, StorageAwayError, ReplacedError, ManifestError])
def test_bad_input_is_caught_as_one_error_and_keeps_its_message(kind):
    with pytest.raises(InputError, match=r"^ingest\.output: is empty; name a folder$"):
        raise pickle.loads(pickle.dumps(kind("ingest.output: is empty; name a folder")))


def test_a_storage_that_is_away_is_told_from_one_that_refuses():
    assert issubclass(StorageAwayError, StorageError)
    assert not issubclass(ReplacedError, StorageAwayError)


def test_equal_failures_are_equal_values():
    assert Failure("dropped", "too_small", "1 x 1") == Failure("dropped", "too_small", "1 x 1")

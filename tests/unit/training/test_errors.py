"""Errors that end a run are one family, and none of them is bad input, which has another exit code."""

import pytest

from pipeline.errors import InputError
from training.checkpoint.writer import CheckpointError, RunTakenError
from training.errors import RunError
from training.step.non_finite import DivergedError


@pytest.mark.parametrize("kind", [CheckpointError, RunTakenError, DivergedError])
def test_every_error_that_restarting_cannot_help_is_a_run_error_and_no_bad_input(kind):
    assert issubclass(kind, RunError)
    assert not issubclass(kind, InputError)
    with pytest.raises(RunError, match=r"^step 7: it ended$"):
        raise kind("step 7: it ended")

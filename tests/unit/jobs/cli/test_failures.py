"""Errors as people read them: the message, the exit code, and whether a traceback says more."""

import errno

import pytest
from ray.data.exceptions import UserCodeException
from ray.exceptions import ActorDiedError, ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError

from jobs.cli.failures import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NOT_MEANT, OF_RAY, explain
from pipeline.errors import ConfigError, InputError, NotMeantError, StorageAwayError, StorageError, WorkerDiedError
from training.errors import RunError


def carried(cause: Exception) -> Exception:
    """The error as the driver gets it from a worker."""
    return RayTaskError("task", "a long\ntraceback", cause).as_instanceof_cause()


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("a=1: is wrong"), EXIT_BAD_INPUT, "a=1: is wrong"),
        (NotMeantError("1 of 2"), EXIT_NOT_MEANT, "1 of 2"),
        (StorageAwayError("s3://a: cannot be reached"), EXIT_FAILED, "s3://a: cannot be reached"),
        (RunError("the run failed"), EXIT_FAILED, "the run failed"),
        (WorkerDiedError("1.tar: 4 workers died over it"), EXIT_FAILED, "1.tar: 4 workers died over it"),
    ],
)
def test_a_message_that_was_written_for_its_case_stands_alone(error, code, says):
    ending = explain(error)
    assert (ending.code, ending.text, ending.is_whole) == (code, says, True)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (carried(StorageError("s3://a: S3 refused (AccessDenied)")), EXIT_BAD_INPUT, "s3://a: S3 refused (AccessDenied)"),
        (carried(StorageAwayError("s3://a: away")), EXIT_FAILED, "s3://a: away"),
        (carried(ExceptionGroup("g", [StorageError("s3://a: refused")])), EXIT_BAD_INPUT, "s3://a: refused"),
        (chained(UserCodeException("UDF"), InputError("t.csv: is cut")), EXIT_BAD_INPUT, "t.csv: is cut"),
        (WorkerGroupError("of workers", {1: InputError("d: is gone")}), EXIT_BAD_INPUT, "d: is gone"),
    ],
)
def test_an_error_of_ours_that_ray_carried_has_its_own_message_and_code(error, code, says):
    ending = explain(error)
    assert (ending.code, ending.text, ending.is_whole) == (code, says, False)


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        carried(FULL),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        chained(InputError("d/a.tar: cannot be written"), FULL),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_failure_to_try_again_whoever_notices_it(error):
    ending = explain(error)
    assert ending.code == EXIT_FAILED
    assert "make room" in ending.text


def test_a_full_disk_of_this_machine_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.cli.failures.shutil.disk_usage", lambda _folder: type("", (), {"free": 0, "total": 1000}))
    assert f"({tmp_path} on this machine: full)" in explain(FULL, [str(tmp_path / "none" / "yet"), str(tmp_path)]).text


def test_the_file_of_a_refused_write_is_named_and_the_input_is_bad():
    ending = explain(OSError(errno.EROFS, "Read-only file system", "/data/figures.json"))
    assert (ending.code, ending.is_whole) == (EXIT_BAD_INPUT, False)
    assert ending.text.startswith("/data/figures.json: Read-only file system; choose a folder")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OutOfMemoryError("long\ntext"), "ran out of memory"),
        (ActorDiedError(), "SIGKILL"),
        (WorkerGroupError("of workers", {0: ActorDiedError()}), "SIGKILL"),
        (OutOfDiskError("long"), "disk of a node is full"),
        (ObjectStoreFullError("long"), "/dev/shm"),
        (MemoryError("Unable to allocate 3 TiB"), "Unable to allocate 3 TiB"),
        (Exception("The current node timed out during startup. This could"), "Ray did not start on this machine"),
        (RuntimeError("Timed out waiting for file /tmp/ray/session/gcs_server_port_1"), "Ray did not start on this machine"),
    ],
)
def test_lost_workers_and_lacking_memory_are_failures_with_a_remedy(error, says):
    ending = explain(error)
    assert (ending.code, says in ending.text, ending.is_whole) == (EXIT_FAILED, True, False)


def test_a_worker_that_is_lost_with_its_head_is_not_blamed():
    assert "the cluster's head does not respond any more" in explain(ActorDiedError(), head_is_gone=True).text
    assert explain(ConfigError("a=1: is wrong"), head_is_gone=True).text == "a=1: is wrong"


def test_an_unexpected_error_is_one_line_with_its_innermost_cause():
    ending = explain(chained(RuntimeError("no\nluck"), KeyError("url")))
    assert (ending.code, ending.text, ending.is_whole) == (EXIT_FAILED, "unexpected error: KeyError: 'url'", False)


@pytest.mark.parametrize("name", OF_RAY)
def test_every_class_of_rays_is_there(name):
    import ray.exceptions

    assert issubclass(getattr(ray.exceptions, name), ray.exceptions.RayError)

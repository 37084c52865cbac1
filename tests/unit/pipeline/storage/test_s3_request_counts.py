"""Requests to S3, their repetitions, and those that came to nothing, as a real client makes them."""

from collections import Counter

import pytest

from pipeline.errors import StorageError
from pipeline.storage import s3_request_counts
from pipeline.storage.address import open_storage
from tests.support.flaky_s3 import flaky_s3

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"


@pytest.fixture
def counted(monkeypatch):
    """What was told since the test began."""
    told = Counter()
    monkeypatch.setattr(s3_request_counts, "_listener", lambda what, number: told.update({what: number}))
    return told


@pytest.fixture
def quick(monkeypatch):
    """boto3 waits between its attempts, up to 20 s; here it asks at once."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)


def answer(handler, status, body, length=None):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.send_header("Connection", "close")  # else a client that asks again at once may do so on what is being closed
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


def served(web, bucket, monkeypatch, *answers):
    """A storage in front of which a server gives these answers to a read of x, one after the other."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    left = list(answers)
    web.put(f"/{bucket.removeprefix('s3://')}/x", lambda handler: answer(handler, *left.pop(0)))
    return open_storage(bucket)


def test_what_goes_well_is_counted_once_and_an_object_that_is_not_there_is_no_failure(bucket, counted):
    storage = open_storage(bucket)
    storage.write("a", b"0123456789")
    assert storage.read("a") == b"0123456789"
    assert storage.size("gone") is None
    assert not storage.write_if_absent("a", b"")
    assert counted == {"requests": 4}


def test_a_range_is_a_request_too_whoever_asks_for_it(bucket, counted):
    storage = open_storage(bucket)
    storage.write("a", b"0123456789")
    assert storage.read_range("a", 2, 3) == b"234"
    assert counted == {"requests": 2}
    assert storage.read_range("a", 10, 5) == b"", "boto3 says that there is nothing"
    with pytest.raises(FileNotFoundError):
        storage.read_range("gone", 0, 1)
    assert counted == {"requests": 4}


def test_each_attempt_after_the_first_is_a_retry(web, bucket, monkeypatch, counted, quick):
    storage = served(web, bucket, monkeypatch, (503, SLOW_DOWN), (500, b""), (200, b"whole"))
    assert storage.read("x") == b"whole"
    assert counted == {"requests": 1, "retries": 2}


def test_a_body_that_is_cut_is_a_retry(web, bucket, monkeypatch, counted):
    storage = served(web, bucket, monkeypatch, (200, b"wh", 5), (200, b"whole"))
    assert storage.read("x") == b"whole"
    assert counted == {"requests": 2, "retries": 1}


def test_a_presigned_read_that_fails_is_a_retry(bucket, counted, s3_endpoint, monkeypatch):
    open_storage(bucket).write("a", bytes(1000))
    with flaky_s3(s3_endpoint, every_503=10**9, every_cut=1) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.address)
        storage = open_storage(bucket)
        counted.clear()
        with pytest.raises(StorageError):
            storage.read_range("a", 0, 1000)
    assert flaky.cut == 5, "one that was presigned, and four of boto3's"
    assert counted == {"requests": 4, "retries": 4, "failures": 1}


def test_what_is_given_up_is_a_failure(web, bucket, monkeypatch, counted, quick):
    storage = served(web, bucket, monkeypatch, *[(503, SLOW_DOWN)] * 6)
    with pytest.raises(StorageError, match="S3 refused"):
        storage.read("x")
    assert counted == {"requests": 1, "retries": 5, "failures": 1}


def test_no_answer_at_all_is_a_failure(bucket, monkeypatch, counted, quick):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached"):
        open_storage(bucket).read("x")
    assert counted == {"requests": 1, "retries": 5, "failures": 1}


def test_what_is_refused_is_a_failure(bucket, counted, s3_endpoint, monkeypatch):
    with flaky_s3(s3_endpoint, every_503=10**9, read_only=True) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.address)
        with pytest.raises(StorageError, match="AccessDenied"):
            open_storage(bucket).write("a", b"")
    assert counted == {"requests": 1, "failures": 1}


def test_without_keys_there_is_no_attempt_and_no_retry(bucket, counted, monkeypatch, tmp_path):
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it remembers them
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="Unable to locate credentials"):
        open_storage(bucket).read("x")
    assert counted["retries"] == 0
    assert counted["failures"] == 1


def test_nobody_needs_to_listen(bucket, monkeypatch):
    monkeypatch.setattr(s3_request_counts, "_listener", None)
    open_storage(bucket).write("a", b"")
    s3_request_counts.count("retries")

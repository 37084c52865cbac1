"""Errors of S3 name the remedy, and never a secret."""

import traceback

import pytest

from pipeline.errors import StorageError
from pipeline.storage.address import open_storage


def test_a_missing_bucket_is_named_with_the_remedy(bucket):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-here: there is no such bucket; create it"):
        open_storage("s3://no-such-bucket-here/x").check_writable()


def test_an_unreachable_endpoint_is_a_storage_error_that_holds_no_secret(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached") as error:
        open_storage(f"{bucket}/x").read("y")
    assert "planted-secret" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["http://someone:pa55w0rd@127.0.0.1:9", "someone:pa55w0rd@127.0.0.1:9"])
@pytest.mark.parametrize("ask", [lambda storage: storage.read("y"), lambda storage: storage.read_range("y", 0, 1)])
def test_an_endpoint_with_a_password_is_refused_and_in_no_traceback(bucket, monkeypatch, endpoint, ask):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL: ") as error:
        ask(open_storage(f"{bucket}/x"))
    assert "pa55w0rd" not in "".join(traceback.format_exception(error.value))

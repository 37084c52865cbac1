"""boto3's S3 client, configured by the environment (keys, region, AWS_ENDPOINT_URL, ...), and its exceptions as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ReplacedError, StorageAwayError, StorageError
from pipeline.storage.url_credentials import has_userinfo

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60


class BeyondEndError(Exception):
    """The requested range begins at or beyond the object's end."""


def new_client() -> Any:
    """Creates a client that retries by itself. Connects to nothing yet.

    Raises:
        StorageError: the endpoint is not a URL, or holds a password, which error messages would show.
    """
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "max_attempts": 5}
    config = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries=retries, signature_version="s3v4")
    try:
        client = boto3.client("s3", config=config)
    except ValueError:
        raise StorageError("AWS_ENDPOINT_URL: is not the URL of a server; write http://HOST:PORT or https://HOST") from None
    if has_userinfo(client.meta.endpoint_url):
        raise StorageError(
            "AWS_ENDPOINT_URL: holds a user name or a password, which S3 does not use; remove it, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return client


@contextlib.contextmanager
def errors_of(address: str) -> Iterator[None]:
    """Translates botocore's exceptions into ours. Messages hold no keys; the address is the one that the user gave."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions
    from botocore.exceptions import BotoCoreError, ClientError

    NEVER_GOOD = (
        exceptions.ParamValidationError,
        exceptions.NoCredentialsError,
        exceptions.NoRegionError,
        exceptions.InvalidRegionError,
        exceptions.ProfileNotFound,
        exceptions.PartialCredentialsError,
    )
    try:
        yield
    except (ClientError, Boto3Error) as raised:
        error = raised.__context__ if isinstance(raised, Boto3Error) else raised  # an upload's error holds that of its request
        if not isinstance(error, ClientError):
            raise _away(address, error or raised) from raised
        code = error.response["Error"]["Code"]
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(f"{address}: there is no such object") from error
        if code in ("InvalidRange", "416"):
            raise BeyondEndError from error
        if code in ("PreconditionFailed", "412"):
            raise ReplacedError(f"{address}: was replaced while it was being read; read it again") from error
        if code == "NoSuchBucket":
            bucket = address.removeprefix("s3://").partition("/")[0]
            raise StorageError(f"s3://{bucket}: there is no such bucket; create it or correct the name") from error
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        away = status >= 500 and status != 501  # 501: not implemented, also when it is tried again
        raise (StorageAwayError if away else StorageError)(
            f"{address}: S3 refused ({code}); check the keys in the environment and their permissions"
        ) from error
    except NEVER_GOOD as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{address}: no request was sent to S3 ({reason}); fix the address or the environment") from error
    except BotoCoreError as error:
        raise _away(address, error) from error


def _away(address: str, error: BaseException) -> StorageAwayError:
    return StorageAwayError(
        f"{address}: S3 cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL, the region and the keys in the "
        "environment"
    )

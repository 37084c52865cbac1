"""boto3's client for S3, as the environment says it (keys, region, AWS_ENDPOINT_URL, ...), and what its exceptions mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ReplacedError, StorageAwayError, StorageError
from pipeline.storage.url_credentials import has_userinfo

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60


class BeyondEndError(Exception):
    """S3 has no bytes in a range that begins at an object's end or beyond."""


def new_client() -> Any:
    """A client, which tries again by itself. Touches nothing yet.

    Raises:
        StorageError: the endpoint is no address, or would be shown with a password whenever it cannot be reached.
    """
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "max_attempts": 5}
    config = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries=retries, signature_version="s3v4")
    try:
        client = boto3.client("s3", config=config)
    except ValueError:
        raise StorageError("AWS_ENDPOINT_URL: is not an address of a server; write http://HOST:PORT or https://HOST") from None
    if has_userinfo(client.meta.endpoint_url):
        raise StorageError(
            "AWS_ENDPOINT_URL: holds a user name or a password, which S3 does not ask for; take it out, and give keys as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return client


@contextlib.contextmanager
def errors_of(address: str) -> Iterator[None]:
    """botocore's exceptions as ours. Their texts hold no keys; the address is the one that the user gave."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions
    from botocore.exceptions import BotoCoreError, ClientError

    NEVER_GOOD = (
        exceptions.ParamValidationError,
        exceptions.NoRegionError,
        exceptions.InvalidRegionError,
        exceptions.ProfileNotFound,
        exceptions.PartialCredentialsError,
    )
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(f"{address}: there is no such object") from error
        if code in ("InvalidRange", "416"):
            raise BeyondEndError from error
        if code in ("PreconditionFailed", "412"):
            raise ReplacedError(f"{address}: was replaced while it was read; read it again") from error
        if code == "NoSuchBucket":
            bucket = address.removeprefix("s3://").partition("/")[0]
            raise StorageError(f"s3://{bucket}: there is no such bucket; create it or correct the name") from error
        away = error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
        raise (StorageAwayError if away else StorageError)(
            f"{address}: S3 refused ({code}); check the keys in the environment and what they may do"
        ) from error
    except NEVER_GOOD as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{address}: S3 was not asked ({reason}); mend the address, or the environment") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageAwayError(
            f"{address}: S3 cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL, the region and the keys in the "
            "environment"
        ) from error

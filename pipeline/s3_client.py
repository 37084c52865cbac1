"""boto3's client for S3, as the environment says it: keys, region and endpoint (AWS_ENDPOINT_URL, ...)."""

from __future__ import annotations

from typing import Any

from pipeline.types import StorageError
from pipeline.userinfo import has_userinfo

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60


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

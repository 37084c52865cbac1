"""An address names a storage, or is refused with a reason that shows no password."""

import pytest

from pipeline.errors import StorageError
from pipeline.storage.address import open_storage


@pytest.mark.parametrize(("uri", "rule"), [("gs://bucket/x", "is not a supported storage"), ("s3://", "names no bucket")])
def test_an_address_that_is_no_storage_is_refused(uri, rule):
    with pytest.raises(StorageError, match=rule):
        open_storage(uri)


@pytest.mark.parametrize("scheme", ["s3", "https", "file"])
def test_an_address_with_a_password_is_refused_and_not_shown(scheme):
    with pytest.raises(
        StorageError, match=rf"^{scheme}://\*\*\*@place/x: an address must not hold a user name or a password"
    ) as error:
        open_storage(f"{scheme}://someone:pa55@w0rd@place/x")
    assert "w0rd" not in str(error.value)
    assert open_storage("s3://place/x@y/z").uri == "s3://place/x@y/z"

"""User names and passwords are found in addresses, hidden and refused."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.storage.url_credentials import HIDDEN, USERINFO, has_userinfo, refusal, without_userinfo

HOLDERS = ["http://me:secret@host/x", "s3://secret@bucket/p", " HTTPS://a:secret@b@host/x"]
HOLDERS += ["http:/me:secret@host/x", "https:me:secret@host/x", "http:\\\\me:secret@host/x"]
OTHERS = ["http://host/x@y", "http://host\\x@y", "http:/host/x@y", "s3://bucket/a@b", "/path/me@host", "http://host?q=a@b", ""]


@pytest.mark.parametrize("address", HOLDERS)
def test_a_password_is_hidden(address):
    assert has_userinfo(address)
    assert "secret" not in without_userinfo(address)
    assert "***@" in without_userinfo(address)
    assert "secret" not in refusal(address)


@pytest.mark.parametrize("address", OTHERS)
def test_other_addresses_stay_unchanged(address):
    assert not has_userinfo(address)
    assert without_userinfo(address) == address


def test_pyarrow_hides_the_same():
    hidden = pc.replace_substring_regex(pa.array(HOLDERS + OTHERS), USERINFO, HIDDEN)
    assert hidden.to_pylist() == [without_userinfo(address) for address in HOLDERS + OTHERS]

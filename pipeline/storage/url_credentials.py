"""User names and passwords within addresses: refused where the address is ours to open, hidden where a table holds it.

The address of a data set or of a run stands in manifests, checkpoints, logs and W&B, and S3 takes its keys from the
environment. A table's URL that holds a password is not fetched, but its row is kept with its reason.
"""

from __future__ import annotations

import re

USERINFO = r"^(\s*[A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@"
"""Also in RE2's syntax, which pyarrow takes."""
HIDDEN = r"\1***@"


def without_userinfo(address: str) -> str:
    """The address with *** in place of its user name and password; one that has none comes back as it is."""
    return re.sub(USERINFO, HIDDEN, address)


def has_userinfo(address: str) -> bool:
    return re.match(USERINFO, address) is not None


def refusal(address: str) -> str:
    """For an address that has_userinfo: the message of an error."""
    return (
        f"{without_userinfo(address)}: an address holds no user name and no password, since manifests, records and logs show "
        "it; take them out: keys of S3 come from the environment"
    )

"""User names and passwords in addresses: refused in addresses of storages, hidden in URLs of tables.

The address of a data set or a run is written to manifests, checkpoints, logs and W&B, and S3 takes its keys from the
environment. A table's URL with a password is not fetched, but its row is kept, with the reason.
"""

from __future__ import annotations

import re

USERINFO = r"^(\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|[Hh][Tt][Tt][Pp][Ss]?:[/\\]*))[^/?#\\]*@"
"""Also valid in RE2's syntax, which pyarrow uses. Browsers also read `http:/host` and `http:\\\\host`."""
HIDDEN = r"\1***@"


def without_userinfo(address: str) -> str:
    """The address with *** in place of its user name and password, if it has any."""
    return re.sub(USERINFO, HIDDEN, address)


def has_userinfo(address: str) -> bool:
    return re.match(USERINFO, address) is not None


def refusal(address: str) -> str:
    """The error message for an address with userinfo."""
    return (
        f"{without_userinfo(address)}: an address must not hold a user name or a password, since manifests, records and logs "
        "show it; remove them: S3 keys come from the environment"
    )

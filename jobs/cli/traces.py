"""Tracebacks go to a file, since a person reads the last line of a terminal. Secrets are hidden in it.

In: text. Out: the path of the file, in the folder `errors` of the job's own folder if that is on this machine, else in the
temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.cli.runtime_env import is_secret_name

FOLDER = "errors"
HIDDEN = "***"
USERINFO = re.compile(r"(://)[^/?#\s'\"@]+@")
SIGNED = re.compile(
    r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|sig|token|password)=)[^&\s'\"]+", re.IGNORECASE
)
WORKING_FOLDER = {"PWD", "OLDPWD"}
MIN_SECRET_LENGTH = 6
"""Shorter values of secret variables are also words."""


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text with *** in place of the values of secret variables, of passwords in addresses and of signatures."""
    names = {name for name in environment if is_secret_name(name)} - WORKING_FOLDER
    secrets = {environment[name] for name in names if len(environment[name]) >= MIN_SECRET_LENGTH}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return SIGNED.sub(rf"\1{HIDDEN}", USERINFO.sub(rf"\1{HIDDEN}@", text))


def write_trace(name: str, text: str, folders: Sequence[str]) -> str:
    """Writes a traceback into the first folder that takes it, else into the temporary one. Returns its path; "" if none does.

    Args:
        name: the job's name.
        folders: on this machine; those that do not exist are passed over, and not created.
    """
    data = without_secrets(text, os.environ).encode("utf-8", "replace")
    file_name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    places = [Path(folder) / FOLDER for folder in folders if Path(folder).is_dir()]
    for place in [*places, Path(tempfile.gettempdir()) / "rayclip" / FOLDER]:
        path = place / file_name
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(data)
            except OSError:  # a full disk takes the name, but not all of the text
                path.unlink()
                raise
            return str(path)
    return ""

"""The tars that `index.input` names: a file, folder or glob, braces as in open_clip and webdataset, or several joined by `::`.

In: the key's text. Out: addresses of tars, in order. Braces name their tars exactly: one that is missing is an error.
"""

from __future__ import annotations

import logging
import re
from collections import Counter

from braceexpand import braceexpand

from pipeline.errors import InputError
from pipeline.ingest.table_files import list_files
from pipeline.storage.address import open_storage
from pipeline.versions.whole_tar import COMPRESSED_SUFFIXES

logger = logging.getLogger(__name__)

SUFFIXES = (".tar",)
OTHER_SUFFIXES = (".TAR", ".Tar", *COMPRESSED_SUFFIXES, *(suffix.upper() for suffix in COMPRESSED_SUFFIXES))
"""Suffixes of tars that are listed as well; compressed ones are refused by name."""
JOIN = "::"
_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
_WILD = re.compile(r"[*?\[]")
_MOST = 1_000_000
"""Tars that braces may name; more are a mistake in a number."""


def named_tars(text: str, own: str) -> list[str]:
    """Addresses of all tars that the key names, without hidden ones (`._x.tar`).

    Args:
        own: the prefix of the data set's own tars, which are no input.

    Raises:
        InputError: a part of the text names no tar, or braces name one that is not there.
    """
    found = [tar for part in text.split(JOIN) for tar in _named(part, own)]
    twice = [tar for tar, count in Counter(found).items() if count > 1]
    if twice:
        logger.warning("%d tars are named twice in index.input, such as %s", len(twice), twice[0])
    return list(dict.fromkeys(found))


def _named(part: str, own: str) -> list[str]:
    if _BRACES.search(part):
        try:
            return _listed(part, own)  # a folder's or file's own name may hold braces
        except InputError:
            return _in_braces(part)
    return _listed(part, own)


def _in_braces(part: str) -> list[str]:
    wanted: list[str] = []
    for address in braceexpand(part):
        if len(wanted) == _MOST:
            raise InputError(f"index.input={part}: its braces name more than {_MOST:,} tars; correct the numbers")
        wanted.append(open_storage(address).uri)
    folders = {address.rpartition("/")[0] for address in wanted}
    held = {f"{folder}/{item.path}" for folder in folders for item in open_storage(folder).list("")}
    missing = [address for address in wanted if address not in held]
    if missing:
        raise InputError(
            f"index.input={part}: {len(missing):,} of the {len(wanted):,} tars that the braces name are not there, such as "
            f"{missing[0]}; correct the numbers, or name those that are there with a glob, as in '{_BRACES.sub('*', part)}'"
        )
    return wanted


def _listed(part: str, own: str) -> list[str]:
    try:
        found = list_files(part, (*SUFFIXES, *OTHER_SUFFIXES), "index.input")
    except InputError:
        found = list_files(part, SUFFIXES, "index.input")  # raises the message with the suffixes to use
    wild = _WILD.search(part)
    root = open_storage(part if wild is None else part[: wild.start()].rpartition("/")[0] or ".").uri
    tars = [tar for tar in found if not tar.startswith(own) and "/." not in f"/{tar.removeprefix(root).lstrip('/')}"]
    hidden = [tar for tar in found if not tar.startswith(own) and tar not in set(tars)]
    if hidden:
        logger.warning("skipped %d hidden files, such as %s", len(hidden), hidden[0])
    return tars

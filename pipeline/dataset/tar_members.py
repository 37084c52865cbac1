"""Walks the members of a tar in order and groups them into samples by key, as webdataset does.

In: an open tar. Out: groups of members, with the place of each member's data. Names that no sample can have (`._x`,
`__MACOSX/x`, folders, links) are skipped before members are grouped, so that they never separate the members of a sample.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self

MAX_PADDING_BYTES = 1 << 20
"""Programs fill the last record with empty blocks. More of them are a download that stopped, in a file of the full size."""
_SYSTEM_FOLDER = re.compile(r"__MACOSX|PaxHeaders?(\.\w+)?")
"""Folders that programs for archives leave behind."""
_METADATA = re.compile(r"__[^/]*__(/|$)")
"""Metadata of a whole tar, by webdataset's convention."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        extension: what follows the key and its dot, in lower case.
        offset: of the data, from the start of the tar.
        is_sparse: its holes are not stored, so that no range of the tar is its content.
        content: None if it was not read.
    """

    extension: str
    offset: int
    size_bytes: int
    is_sparse: bool
    content: bytes | None


@dataclass(frozen=True)
class Group:
    """Neighbouring members with one key, by extension.

    Attributes:
        number: 0 for the first member of each extension, 1 for members that repeat one of these, and so on.
    """

    key: str
    number: int
    members: dict[str, Member]


@dataclass
class Skipped:
    """Members that belong to no sample, counted by their kind; with the first name of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, name)


class Header(tarfile.TarInfo):
    """A header whose name is read as it was written.

    GNU's own format has times where POSIX has the first part of a long name; Python's tarfile makes folders of them.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if buf[257:265] == b"ustar  \0" and info.isreg():
            info.name = buf[:100].partition(b"\0")[0].decode(encoding, errors)
        return info


def open_tar(file: Any, mode: Literal["r:", "r|"] = "r:", buffer_bytes: int = tarfile.RECORDSIZE) -> tarfile.TarFile:
    """Opens a tar for reading, with names as they were written.

    Args:
        mode: "r|" reads the file once from start to end.
        buffer_bytes: size of the reads of "r|".
    """
    return tarfile.open(
        fileobj=file, mode=mode, bufsize=buffer_bytes, tarinfo=Header, encoding="utf-8", errors="surrogateescape"
    )


def group_members(
    tar: tarfile.TarFile, reads: Callable[[str, int, tarfile.TarInfo], bool], skipped: Skipped | None = None
) -> Iterator[Group]:
    """Yields the groups of a tar in its order.

    Args:
        reads: whether to read the content of a member: of its extension, the number of members of that extension before it in
            its group, and its header.
        skipped: collects the members that belong to no sample.
    """
    current, groups = "", list[dict[str, Member]]()
    for info in _named(tar, skipped or Skipped()):
        key, extension = split_key(as_text(info.name))
        if key != current:
            yield from _numbered(current, groups)
            current, groups = key, []
        number = sum(extension in group for group in groups)
        if number == len(groups):
            groups.append({})
        content = member_content(tar, info) if reads(extension, number, info) else None
        groups[number][extension] = Member(extension, info.offset_data, info.size, info.issparse(), content)
    yield from _numbered(current, groups)


def _numbered(key: str, groups: Iterable[dict[str, Member]]) -> Iterator[Group]:
    return (Group(key, number, members) for number, members in enumerate(groups))


def _named(tar: tarfile.TarFile, skipped: Skipped) -> Iterator[tarfile.TarInfo]:
    """Yields the files that may be a member of a sample."""
    for info in tar:
        if info.isdir():
            continue
        if info.issym() or info.islnk():
            skipped.add("links", as_text(info.name))
        elif not info.isfile():
            skipped.add("devices and other special files", as_text(info.name))
        elif not may_be_of_a_sample(info.name):
            skipped.add("files without a key", as_text(info.name))
        else:
            yield info


def may_be_of_a_sample(name: str) -> bool:
    """Returns whether a file's name has a key and an extension, and is no leftover of a program for archives."""
    *folders, base = name.split("/")
    if base.startswith(".") or "." not in base:
        return False
    return not _METADATA.match(name) and not any(_SYSTEM_FOLDER.fullmatch(folder) for folder in folders)


def split_key(name: str) -> tuple[str, str]:
    """(key, extension) of a member, split as in webdataset: at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def as_text(name: str) -> str:
    """A member's name with bytes that are not UTF-8 written as \\xNN, so that names that differ stay different."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def member_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Reads the data of a member that is a file."""
    file = tar.extractfile(member)
    assert file is not None  # it is a file
    return file.read()

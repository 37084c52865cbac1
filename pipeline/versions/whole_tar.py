"""Reads a tar once from start to end, hashes it, and notices if it is not whole, or no tar that ranges can be read from.

Python's tarfile, like webdataset, takes the end of the file, a damaged header or an empty block for the end of the archive, and
says nothing. Here the place where the members end is compared with the file.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.dataset.tar_members import MAX_PADDING_BYTES, open_tar
from pipeline.errors import InputError
from pipeline.storage.base import Storage

READ_BYTES = 8 << 20
BUFFER_BYTES = 64 << 10
"""tarfile copies its whole buffer for each header and each member: with 8 MiB, that took most of the time."""
BLOCK_BYTES = tarfile.BLOCKSIZE
_DECOMPRESSORS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
COMPRESSED_SUFFIXES = {
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tbz2": "bzip2",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zstd",
    ".tzst": "zstd",
    ".tar.lz4": "lz4",
}
_OTHERS = {
    b"PK\x03\x04": "a zip file; pack its files into a tar",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it: git lfs pull",
    b"<": "a web page or XML, not the file itself; fetch it again",
}


class HashedTar(io.RawIOBase):
    """A tar as a stream of bytes, read in ranges and hashed on the way."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.size_bytes = 0
        """Bytes that were fetched so far; at the end, the tar's size."""
        self._storage, self._path, self._digest = storage, path, hashlib.sha256()
        self._chunk, self._at = b"", 0
        self._ended = False

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        """Reads at most `count` bytes; none, once, at the end."""
        if self._at == len(self._chunk):
            if self._ended:  # tarfile skips a member of 2^60 bytes by reading, and does not notice the end
                raise tarfile.ReadError("unexpected end of data")
            self._fetch()
        stop = len(self._chunk) if count < 0 else self._at + count
        data = self._chunk[self._at : stop]
        self._at += len(data)
        return data

    def read_rest(self) -> None:
        while not self._ended:
            self._fetch()

    def _fetch(self) -> None:
        self._chunk, self._at = self._storage.read_range(self._path, self.size_bytes, READ_BYTES), 0
        self.size_bytes += len(self._chunk)
        self._digest.update(self._chunk)
        self._ended = not self._chunk

    def peek(self, start: int, length: int) -> bytes:
        """Reads a range without hashing it."""
        return self._storage.read_range(self._path, start, length)


@contextmanager
def open_whole(stream: HashedTar, address: str) -> Iterator[tarfile.TarFile]:
    """Opens a tar for reading its members once, in order; at the end, checks that they were all of the tar.

    Raises:
        InputError: it is not a whole tar, or training cannot read ranges of it.
    """
    subject = f"index.input={address}"
    name = address.rpartition("/")[2]
    _check_kind(stream.peek(0, BLOCK_BYTES), subject, name)
    try:
        with open_tar(stream, "r|", BUFFER_BYTES) as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{subject}: is not a complete tar ({error}); restore it or remove it") from None
    stream.read_rest()
    _check_end(stream, tar.offset, subject, name)


def find_compressed(addresses: Iterable[str]) -> dict[str, str]:
    """Messages about tars that are compressed by their names, by address."""
    return {
        address: _compressed(f"index.input={address}", program, address.rpartition("/")[2])
        for address in addresses
        for suffix, program in COMPRESSED_SUFFIXES.items()
        if address.lower().endswith(suffix)
    }


def _compressed(subject: str, program: str, name: str) -> str:
    rule = f"is compressed with {program}, so that training cannot read its images by range"
    remedy = _without_overwriting(f"{program} -dc {shlex.quote(name)} > {_part_of(name, 'plain')}")
    return f"{subject}: {rule}; decompress it: {remedy}"


def _without_overwriting(command: str) -> str:
    """A command in which the shell refuses to write over a file that exists (`noclobber`)."""
    return f"(set -C; {command})"


def _part_of(name: str, part: str) -> str:
    """The quoted name of a file to make out of a tar: of its own for each tar and each part."""
    suffix = next((suffix for suffix in (*COMPRESSED_SUFFIXES, ".tar") if name.lower().endswith(suffix)), "")
    return shlex.quote(f"{name[: len(name) - len(suffix)]}.{part}.tar")


def _check_kind(head: bytes, subject: str, name: str) -> None:
    """Raises InputError if the first bytes are those of a compressed tar, or of no tar at all."""
    if not head:
        raise InputError(f"{subject}: is empty, without even the blocks that end a tar; restore it or remove it")
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return
    except tarfile.HeaderError:
        pass
    for magic, program in _DECOMPRESSORS.items():
        if head.startswith(magic):
            raise InputError(_compressed(subject, program, name))
    for magic, description in _OTHERS.items():
        if head.lstrip().startswith(magic):
            raise InputError(f"{subject}: is not a complete tar (it is {description})")


def _check_end(stream: HashedTar, end: int, subject: str, name: str) -> None:
    """Raises InputError unless nothing but empty blocks, and at least one, follows the last member.

    Args:
        end: where the last member ends, and the header of another one would begin.
    """
    size = stream.size_bytes
    follows = _first_set_byte(stream, end)
    if end > size:
        raise InputError(f"{subject}: is not a complete tar (it is cut in its last member); restore it or remove it")
    if follows is None and size - end < BLOCK_BYTES:
        raise InputError(
            f"{subject}: is not a complete tar (it has no end: members may be missing); restore it, or if nothing is missing, "
            f"end it: head -c 1024 /dev/zero >> {shlex.quote(name)}"
        )
    if follows is None:
        if size - end > MAX_PADDING_BYTES:
            raise InputError(
                f"{subject}: is not a complete tar (it is empty after byte {end:,}, as if a download had stopped); "
                f"restore it, or if nothing is missing, cut it there: truncate -s {end + 2 * BLOCK_BYTES} "
                f"{shlex.quote(name)}"
            )
        return
    if follows < end + BLOCK_BYTES:
        problem = "it is cut in a header" if size - end < BLOCK_BYTES else f"the header at byte {end:,} is damaged"
        raise InputError(f"{subject}: is not a complete tar ({problem}); restore it or remove it")
    start = end + (follows - end) // BLOCK_BYTES * BLOCK_BYTES
    whole, first, rest = shlex.quote(name), _part_of(name, "first"), _part_of(name, "rest")
    cut = _without_overwriting(f"head -c {start} {whole} > {first} && tail -c +{start + 1} {whole} > {rest}")
    raise InputError(
        f"{subject}: ends at byte {end:,}, and more follows, perhaps another tar, which no program reads; cut it in two, "
        f"and remove it once both are indexed: {cut}"
    )


def _first_set_byte(stream: HashedTar, start: int) -> int | None:
    """Position of the first byte from `start` on that is not zero."""
    while start < stream.size_bytes:
        data = stream.peek(start, READ_BYTES)
        if not data:
            return None
        rest = data.lstrip(b"\0")
        if rest:
            return start + len(data) - len(rest)
        start += len(data)
    return None

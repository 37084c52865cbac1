"""Data sets of the clip-benchmark community: WebDataset tars with class names and prompts beside them.

    ROOT/test/0.tar 1.tar ... nshards.txt    images (.webp .png .jpg .jpeg), each with .cls (the number of its class) or .txt
                                             (one caption per line, if dataset_type.txt says retrieval)
    ROOT/train/...                           the same for another split
    ROOT/classnames.txt                      one name per line, beginning with class 0
    ROOT/zeroshot_classification_templates.txt   one prompt per line, with {c}
    ROOT/dataset_type.txt                    retrieval or classification (the default)

In: such a folder, or one split of it. Out: an `ImageSet`. Each rank indexes some of the tars for all.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pipeline.dataset.tar_members import MAX_PADDING_BYTES, Group, Skipped, group_members, open_tar
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.small_text import decode_text, read_text, split_lines
from training.data.shard_reader import RawSample
from training.distributed import World, failing_together, gather_objects
from training.evaluation.image_sets import CLASS_NAMES, TEMPLATES, ImageSet, read_several
from training.evaluation.label_names import INTEGER, as_integer

EXTENSIONS = ("webp", "png", "jpg", "jpeg")
"""Extensions of images; if a sample has several, the first one here counts."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PARTIAL = re.compile(r"\.tar\.(?:part|partial|crdownload|download|tmp|temp|aria2|incomplete|filepart|\w{6})$", re.IGNORECASE)
"""Names of files that programs are still writing."""
_SPLIT = re.compile(r"(?:train|val|valid|validation|dev|test|eval|trainval)(?:[-_]?\w*)", re.IGNORECASE)
"""Names of folders that are splits of the folder above."""
BUFFER_BYTES = 4 << 20
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class _Member:
    """One sample of a tar, with the offset and size of its image."""

    key: str
    tar: str
    offset: int
    size: int
    label: str | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class _Index:
    """The samples of a tar, and the members that belong to none."""

    members: list[_Member]
    skipped: Skipped


class TarImageSet(ImageSet):
    """One split."""

    needs_names = True

    def __init__(self, subject: str, storage: Storage, split: str, paths: Sequence[str], captions: bool, world: World) -> None:
        """Args:
        split: folder of the tars in the storage; "": they lie at its root, and the text files there or one folder up.
        paths: the paths of all files in the storage.
        captions: captions are wanted instead of labels.
        """
        self.subject, self._storage, self._captions = subject, storage, captions
        with failing_together(world):
            folders = _text_folders(storage, split)
            self._lines_are_captions = self._check_type(folders) == "retrieval"
            self.class_names, self.templates = (_first_text(folders, name) for name in (CLASS_NAMES, TEMPLATES))
            tars = self._tars(f"{split}/" if split else "", paths)
            own = [_index_tar(storage.uri, tar, storage.etag(tar)) for tar in tars[world.rank :: world.world_size]]
        shared = gather_objects(own, world)
        indices = [shared[number % world.world_size][number // world.world_size] for number in range(len(tars))]
        self._members = [member for index in indices for member in index.members]
        self.notes = (*_notes([index.skipped for index in indices]), *_gaps(tars, paths))
        self.num_samples = len(self._members)
        for member in self._members:
            self._check(member)
        self._refuse_copies(tars, indices)

    def read(self, first: int, stop: int) -> list[RawSample]:
        members = self._members[first:stop]
        images = read_several(lambda one: self._storage.read_range(one.tar, one.offset, one.size), members)
        return [RawSample(one.key, image, one.captions) for one, image in zip(members, images, strict=True)]

    def labels(self) -> list[str]:
        return [str(as_integer(str(member.label))) for member in self._members]

    def _check_type(self, folders: Sequence[Storage]) -> str:
        kind = " ".join(split_lines(_first_text(folders, "dataset_type.txt") or "classification")).lower()
        if kind == "retrieval" and not self._captions:
            raise ConfigError(f"{self.subject}: is for retrieval (dataset_type.txt); name it in evaluation.retrieval_uri")
        if kind not in ("retrieval", "classification"):
            raise ConfigError(
                f"{self.subject}: its dataset_type.txt says {kind}, but only classification and retrieval can be measured; "
                "name another data set"
            )
        return kind

    def _tars(self, folder: str, paths: Sequence[str]) -> list[str]:
        """Returns the tars in order of their numbers. Raises ConfigError if one that nshards.txt counts is missing."""
        here = [path for path in paths if path.startswith(folder) and "/" not in path[len(folder) :]]
        packed = [path for path in here if path.lower().endswith(COMPRESSED)]
        if packed:
            raise ConfigError(f"{self.subject}: {packed[0]} is compressed, and images are read in place; decompress it")
        found = [path for path in here if path.lower().endswith(".tar")]
        text = read_text(self._storage, f"{folder}nshards.txt")
        if text is None or not text.strip():
            return sorted(found, key=lambda path: (len(path), path))
        told = " ".join(split_lines(text))
        promised = [f"{folder}{number}.tar" for number in range(as_integer(told))] if INTEGER.fullmatch(told) else []
        missing, more = [tar for tar in promised if tar not in found], [tar for tar in found if tar not in promised]
        if missing or more or not promised:
            rule = f"but {(missing or more)[0]} is {'missing' if missing else 'there too'}"
            rule = rule if promised else "and must say how many tars there are"
            remedy = "remove it, or correct nshards.txt" if promised and more and not missing else "fetch the data set again"
            raise ConfigError(f"{self.subject}: {folder}nshards.txt says {told}, {rule}; {remedy}")
        return promised

    def _refuse_copies(self, tars: Sequence[str], indices: Sequence[_Index]) -> None:
        """Raises ConfigError if a tar is the copy of another, as programs make it by the name `0 (1).tar`."""
        alike: dict[tuple[_Member, ...], list[str]] = {}
        for tar, index in zip(tars, indices, strict=True):
            if index.members:
                alike.setdefault(tuple(replace(member, tar="") for member in index.members), []).append(tar)
        for several in (found for found in alike.values() if len(found) > 1):
            first: dict[str, str] = {}
            for tar in several:
                with self._storage.open(tar, BUFFER_BYTES) as file:
                    before = first.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), tar)
                if before != tar:
                    raise ConfigError(
                        f"{self.subject}: {tar} has the same bytes as {before}, so its samples would count twice; remove one"
                    )

    def _check(self, member: _Member) -> None:
        subject = f"{self.subject}: {member.tar}: sample {member.key}"
        if not member.size:
            raise ConfigError(f"{subject} has no image (.webp, .png, .jpg, .jpeg); remove it from the tar")
        if self._captions and not member.captions:
            raise ConfigError(f"{subject} has no captions (.txt, one per line); remove it from the tar, or write some")
        if self._captions and len(member.captions) > 1 and not self._lines_are_captions:
            raise ConfigError(
                f"{subject} has {len(member.captions)} lines in its .txt: as many captions in tars for retrieval, and one in "
                f"those of img2dataset; for the former, write retrieval into {self._storage.address('dataset_type.txt')}; for "
                "the latter, make a data set of the tars with jobs/index.py"
            )
        if not self._captions and (member.label is None or not INTEGER.fullmatch(member.label) or as_integer(member.label) < 0):
            raise ConfigError(
                f"{subject} has the label {member.label!r}, but .cls must hold the number of a class; fix the tar"
            )


def _notes(skipped: Sequence[Skipped]) -> Iterator[str]:
    """Yields a sentence for each kind of members that belong to no sample."""
    for kind in sorted({kind for one in skipped for kind in one.counts}):
        count = sum(one.counts[kind] for one in skipped)
        first = next(one.first[kind] for one in skipped if kind in one.first)
        yield f"{count:,} members of its tars belong to no sample: {kind}, such as {first}"


def _gaps(tars: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """Yields a sentence for what looks like a copy that has not been finished: numbers that are missing, partial files."""
    folder = tars[0].rpartition("/")[0] if tars else ""
    stems = [tar.rpartition("/")[2].rpartition(".")[0] for tar in tars]
    if len(stems) > 1 and all(stem.isdecimal() for stem in stems):
        numbers = set(map(int, stems))
        missing = next((number for number in range(max(numbers)) if number not in numbers), None)
        if missing is not None:
            yield f"its tars are numbered up to {max(numbers)}, but number {missing} is not there"
    partial = [path for path in paths if path.rpartition("/")[0] == folder and _PARTIAL.search(path)]
    if partial:
        yield f"{partial[0]} looks like a tar that is not complete yet, and is not used"


def _text_folders(storage: Storage, split: str) -> list[Storage]:
    """Returns the folders that may hold the text files: the one of the splits, which is the parent if a split was named."""
    parent, _, name = storage.uri.rpartition("/")
    is_split = not split and parent not in ("", "s3:/") and _SPLIT.fullmatch(name)
    return [storage, *([open_storage(parent)] if is_split else [])]


def _first_text(storages: Sequence[Storage], name: str) -> str | None:
    return next((text for storage in storages if (text := read_text(storage, name)) is not None), None)


@lru_cache(maxsize=4096)
def _index_tar(uri: str, path: str, etag: str) -> _Index:
    """Lists the samples of a tar, grouped as for an index of ours (pipeline/dataset/tar_members.py).

    The index is kept for the next evaluation while the tar is the same (`etag`).

    Raises:
        ConfigError: the file is not a complete tar.
    """
    storage = open_storage(uri)
    address, whole, index = storage.address(path), storage.size(path) or 0, _Index([], Skipped())
    try:
        with storage.open(path, BUFFER_BYTES) as file, open_tar(file) as tar:
            for group in group_members(tar, _is_read, index.skipped):
                sample = _sample(address, path, group)
                index.members.append(sample)
                if sample.offset + sample.size > whole:
                    raise EOFError(f"it ends at byte {whole:,}, inside sample {sample.key}")
            _check_end(file, address, tar, whole)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{address}: is not a complete tar ({error}); fetch it again") from None
    return index


def _is_read(extension: str, number: int, info: tarfile.TarInfo) -> bool:
    """Returns whether the content of a member is needed; see `group_members`."""
    return extension in ("cls", "txt")


def _sample(address: str, path: str, group: Group) -> _Member:
    """Returns the sample of a group. Raises ConfigError if two members have the same name."""
    key, found = group.key.removeprefix("./"), group.members
    if group.number:
        raise ConfigError(
            f"{address}: sample {key} has two members .{next(iter(found))}, of one of which nothing would be left; fix the tar"
        )
    image = next((found[extension] for extension in EXTENSIONS if extension in found), None)
    if image is not None and image.is_sparse:
        raise ConfigError(f"{address}: the image of sample {key} is stored as a sparse file; write the tar without --sparse")
    offset, size = (image.offset, image.size_bytes) if image is not None else (0, 0)
    texts = {
        extension: decode_text(found[extension].content or b"", f"{address}: sample {key}: .{extension}")
        for extension in ("cls", "txt")
        if extension in found
    }
    captions = tuple(dict.fromkeys(line for line in split_lines(texts["txt"]) if line)) if "txt" in texts else ()
    label = texts["cls"].strip().strip("\"'") if "cls" in texts else None
    return _Member(key, path, offset, size, label, captions)


def _check_end(file: Any, address: str, tar: tarfile.TarFile, whole: int) -> None:
    """Raises ConfigError if a tar stops without its end, or continues behind it: then samples are missing here."""
    members = tar.getmembers()
    if not members:
        return
    end = tar.offset  # where the header of another member would begin
    file.seek(end)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise ConfigError(
            f"{address}: is a tar without its end, as one that was cut is; fetch it again, or if it is known to be whole, "
            "append 1024 zero bytes"
        )
    while block:
        if block.strip(b"\0"):
            raise ConfigError(
                f"{address}: continues behind the end of its last readable member ({members[-1].name}), as cut and joined "
                "tars do; fetch it again, or join tars with tar --concatenate"
            )
        block = file.read(BUFFER_BYTES)
    if whole - end > MAX_PADDING_BYTES:
        raise ConfigError(
            f"{address}: is empty after byte {end:,}, as if a download had stopped; fetch it again, or if nothing is missing, "
            f"cut it there: truncate -s {end + 2 * BLOCK} FILE"
        )

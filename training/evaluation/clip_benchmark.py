"""Data sets of the clip-benchmark community: WebDataset tars with class names and prompts beside them.

    ROOT/test/0.tar 1.tar ... nshards.txt    images (.webp .png .jpg .jpeg), each with .cls (the number of its class) or .txt
                                             (one caption per line)
    ROOT/train/...                           the same for another split
    ROOT/classnames.txt                      one name per line, beginning with class 0
    ROOT/zeroshot_classification_templates.txt   one prompt per line, with {c}
    ROOT/dataset_type.txt                    retrieval or classification (the default)

In: such a folder, or one split of it. Out: an `ImageSet`. Each rank indexes some of the tars for all.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.data.shard_reader import RawSample
from training.distributed import World, gather_objects
from training.evaluation.image_sets import CLASS_NAMES, TEMPLATES, ImageSet, read_lines, read_several

EXTENSIONS = ("webp", "png", "jpg", "jpeg")
"""Extensions of images; if a sample has several, the first one here counts."""
BUFFER_BYTES = 4 << 20


@dataclass(frozen=True)
class _Member:
    """One sample of a tar, with the offset and size of its image."""

    key: str
    tar: str
    offset: int
    size: int
    label: str | None
    captions: tuple[str, ...]


class TarImageSet(ImageSet):
    """One split."""

    numbered_classes = True

    def __init__(self, subject: str, storage: Storage, split: str, paths: Sequence[str], captions: bool, world: World) -> None:
        """Args:
        split: folder of the tars in the storage; "": they lie at its root, and the text files there or one folder up.
        paths: the paths of all files in the storage.
        captions: captions are wanted instead of labels.
        """
        self.subject, self._storage, self._captions = subject, storage, captions
        folders = _text_folders(storage, split)
        self._check_type(folders)
        self.class_names, self.templates = (_first_lines(folders, name) for name in (CLASS_NAMES, TEMPLATES))
        tars = self._tars(f"{split}/" if split else "", paths)
        own = [_index_tar(storage.uri, tar, storage.etag(tar)) for tar in tars[world.rank :: world.world_size]]
        shared = gather_objects(own, world)
        self._members = [
            member for number in range(len(tars)) for member in shared[number % world.world_size][number // world.world_size]
        ]
        self.num_samples = len(self._members)
        for member in self._members:
            self._check(member)

    def read(self, first: int, stop: int) -> list[RawSample]:
        members = self._members[first:stop]
        images = read_several(lambda one: self._storage.read_range(one.tar, one.offset, one.size), members)
        return [RawSample(one.key, image, one.captions) for one, image in zip(members, images, strict=True)]

    def labels(self) -> list[str]:
        return [str(member.label) for member in self._members]

    def match_names(self, labels: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """A label is the number of its class, whether or not every class has images."""
        return {str(number): name for number, name in enumerate(names)}

    def _check_type(self, folders: Sequence[Storage]) -> None:
        kind = (_first_lines(folders, "dataset_type.txt") or ("classification",))[0].lower()
        if kind == "retrieval" and not self._captions:
            raise ConfigError(f"{self.subject}: is for retrieval (dataset_type.txt); name it in evaluation.retrieval_uri")
        if kind not in ("retrieval", "classification"):
            raise ConfigError(
                f"{self.subject}: its dataset_type.txt says {kind}, but only classification and retrieval can be measured; "
                "name another data set"
            )

    def _tars(self, folder: str, paths: Sequence[str]) -> list[str]:
        """Returns the tars in order of their numbers. Raises ConfigError if one that nshards.txt counts is missing."""
        found = [path for path in paths if path.startswith(folder) and path.endswith(".tar") and "/" not in path[len(folder) :]]
        lines = read_lines(self._storage, f"{folder}nshards.txt")
        if not lines:
            return sorted(found, key=lambda path: (len(path), path))
        promised = [f"{folder}{number}.tar" for number in range(int(lines[0]))] if lines[0].isdigit() else []
        missing = [tar for tar in promised if tar not in found]
        if missing or not promised:
            rule = f"but {missing[0]} is missing" if missing else "and must say how many tars there are"
            raise ConfigError(f"{self.subject}: {folder}nshards.txt says {lines[0]}, {rule}; fetch the data set again")
        return promised

    def _check(self, member: _Member) -> None:
        subject = f"{self.subject}: {member.tar}: sample {member.key}"
        if not member.size:
            raise ConfigError(f"{subject} has no image (.webp, .png, .jpg, .jpeg); remove it from the tar")
        if self._captions and not member.captions:
            raise ConfigError(f"{subject} has no captions (.txt, one per line); remove it from the tar, or write some")
        if not self._captions and (member.label is None or not member.label.isdigit()):
            raise ConfigError(
                f"{subject} has the label {member.label!r}, but .cls must hold the number of a class; fix the tar"
            )


def _text_folders(storage: Storage, split: str) -> list[Storage]:
    """Returns the folders that may hold the text files: the one of the splits, which is the parent if a split was named."""
    parent = storage.uri.rpartition("/")[0]
    above = [] if split or parent in ("", "s3:/") else [open_storage(parent)]
    return [storage, *above]


def _first_lines(storages: Sequence[Storage], name: str) -> tuple[str, ...]:
    return next((lines for storage in storages if (lines := read_lines(storage, name))), ())


@lru_cache(maxsize=4096)
def _index_tar(uri: str, path: str, etag: str) -> list[_Member]:
    """Lists the samples of a tar, by webdataset's rule: files with the same name up to the first dot are one sample.

    The index is kept for the next evaluation while the tar is the same (`etag`).

    Raises:
        ConfigError: the file is not a complete tar.
    """
    storage = open_storage(uri)
    members, whole = [], storage.size(path) or 0
    try:
        with tarfile.open(fileobj=storage.open(path, BUFFER_BYTES), mode="r:") as tar:
            files = ((*_split(member.name), member) for member in tar if member.isfile())
            for key, group in groupby(files, key=lambda item: item[0]):
                found = {extension: member for _, extension, member in group}
                image = next((found[extension] for extension in EXTENSIONS if extension in found), None)
                offset, size = (image.offset_data, image.size) if image is not None else (0, 0)
                label = _text(tar, found["cls"]).strip() if "cls" in found else None
                lines = _text(tar, found["txt"]).splitlines() if "txt" in found else []
                captions = tuple(line.strip() for line in lines if line.strip())
                if offset + size > whole:
                    raise EOFError(f"it ends at byte {whole:,}, inside sample {key}")
                members.append(_Member(key, path, offset, size, label, captions))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ConfigError(f"{storage.address(path)}: is not a complete tar ({error}); fetch it again") from None
    return members


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None  # `member` is a file
    return file.read().decode("utf-8", "replace")

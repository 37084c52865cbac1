"""Finds the images in a folder that holds a folder for each class.

In: the paths of all files at an address. Out: `ClassFolders`: the images, classes without one, and what was skipped; or a
ConfigError where the folders are not classes. What torchvision's ImageFolder takes is taken, with two exceptions: hidden
folders and files, and those that systems make (`__MACOSX`, `@eaDir`), are no data; and more formats are read than it knows.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import ConfigError
from pipeline.storage.base import Storage
from training.evaluation.label_names import some

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"),  # torchvision's
    *(".jpe", ".jfif", ".gif", ".avif"),
)
SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found", "__pycache__")
)
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_SPLITS = (
    ("train", "training", "trainset", "train_set"),
    ("val", "valid", "validation", "dev", "valset", "val_set"),
    ("test", "testing", "testset", "test_set", "eval"),
)
YEAR = re.compile(r"[-_ ]?\d+$")
SPLIT_OF = {name: names[0] for names in _SPLITS for name in names}
ROLES = frozenset(("images", "imgs", "image", "img", "jpegimages", "masks", "mask", "labels", "label", "annotations", "gt"))
"""Folders of a data set for detection or segmentation."""
PART_SUFFIX = ".part"


@dataclass(frozen=True)
class ClassFolders:
    """The images of a folder with a folder for each class.

    Attributes:
        images: their paths, by class and then by path.
        empty: class folders without an image.
        notes: what was skipped, or looks as if it was meant otherwise; a sentence each.
    """

    images: list[str]
    empty: tuple[str, ...]
    notes: tuple[str, ...]


def list_paths(storage: Storage, subject: str, with_broken_links: bool = False) -> list[str]:
    """Lists the files at an address that are data, sorted; on a disk, links to folders are followed, as ImageFolder does.

    Args:
        with_broken_links: list links that lead nowhere, instead of refusing them.

    Raises:
        ConfigError: a link leads nowhere, or a folder cannot be read.
    """
    root = storage.local_path("")
    paths = [item.path for item in storage.list("")] if root is None else sorted(_walk(root, subject, with_broken_links))
    return [path for path in paths if is_data(path)]


def is_data(path: str) -> bool:
    """Returns False for hidden files and folders, and for those that systems make."""
    *folders, name = path.split("/")
    hidden = any(part.startswith(".") and part != "." for part in (*folders, name))
    return (
        not hidden and name.lower() not in SYSTEM_FILES and not any(part.lower() in SYSTEM_NAMES for part in (*folders, name))
    )


def find_class_folders(subject: str, storage: Storage, paths: Sequence[str]) -> ClassFolders | None:
    """Sorts the files by class; None if no folder holds an image.

    Raises:
        ConfigError: the folders are the splits of a data set, or one folder around it; or a name is not UTF-8.
    """
    inside = [path for path in paths if "/" in path]
    images = [path for path in inside if is_image(path)]
    if not images:
        return None
    for path in images:
        if not path.isprintable() and any("\ud800" <= character <= "\udfff" for character in path):
            raise ConfigError(f"{subject}: the name {path.encode(errors='replace').decode()!r} is not UTF-8; rename it")
    images.sort(key=lambda path: (path.partition("/")[0], path))
    classes = sorted({path.partition("/")[0] for path in images})
    _refuse_splits(subject, storage.uri, images, classes)
    empty = tuple(sorted(_all_folders(storage, inside) - set(classes)))
    return ClassFolders(images, empty, tuple(_notes(paths, images)))


def _walk(root: Path, subject: str, with_broken_links: bool) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise ConfigError(f"{subject}: {error.filename} cannot be read ({error.strerror}); make it readable")

    if not root.is_dir():
        return
    above = {str(root): frozenset((os.path.realpath(root),))}
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        own = above.pop(folder)
        for name in [*folders]:
            inner, real = f"{folder}/{name}", os.path.realpath(f"{folder}/{name}")
            if real in own or not is_data(name):  # a link to a folder around it
                folders.remove(name)
            else:
                above[inner] = own | {real}
        for name in files:
            path = Path(folder, name)
            is_broken = not path.exists() and path.is_symlink() and is_data(name)
            if is_broken and not with_broken_links:
                raise ConfigError(
                    f"{subject}: {path} is a link to {path.readlink()}, which does not exist; restore or remove it"
                )
            if is_broken or (path.is_file() and path.suffix != PART_SUFFIX):
                yield path.relative_to(root).as_posix()


def _all_folders(storage: Storage, inside: Sequence[str]) -> set[str]:
    """Returns the folders that may be classes; on a disk, also those without any file."""
    root, found = storage.local_path(""), {path.partition("/")[0] for path in inside}
    return found if root is None else found | {item.name for item in root.iterdir() if item.is_dir() and is_data(item.name)}


def _refuse_splits(subject: str, uri: str, images: Sequence[str], classes: Sequence[str]) -> None:
    """Raises ConfigError if the folders at the top hold the classes, instead of being them."""
    inner = defaultdict(set)
    for path in images:
        parts = path.split("/")
        inner[parts[0]].add(parts[1] if len(parts) > 2 else "")
    if len(classes) > 1 and all(name.lower() in ROLES for name in classes):
        raise ConfigError(
            f"{subject}: holds the folders {', '.join(classes)}, which are parts of a data set, not its classes; put the "
            "images of each class into a folder of its own"
        )
    plain = {name: YEAR.sub("", name.lower()) for name in classes}  # train2017
    splits = {name: SPLIT_OF[short] for name, short in plain.items() if short in SPLIT_OF}
    nested = [name for name in splits if "" not in inner[name]]
    if splits and (len(splits) == len(classes) or len({splits[name] for name in nested}) > 1):
        best = min(splits, key=lambda name: ("val", "test", "train").index(splits[name]))
        remedy = f"name {uri}/{best}" if inner[best] != {""} else "put the images of each class into a folder of its own"
        raise ConfigError(
            f"{subject}: holds the folders {', '.join(splits)}, which are the splits of a data set, not its classes; {remedy}"
        )
    if len(classes) == 1 and "" not in inner[classes[0]] and len(inner[classes[0]]) > 1:
        raise ConfigError(
            f"{subject}: holds one folder, {classes[0]}, with the folders {some(sorted(inner[classes[0]]))} in it; name "
            f"{uri}/{classes[0]} if these are the classes"
        )


def _notes(paths: Sequence[str], images: Sequence[str]) -> Iterator[str]:
    taken = set(images)
    others = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in paths if "/" in path and path not in taken)
    if others:
        shown = ", ".join(f"{suffix}: {count:,}" for suffix, count in others.most_common(3))
        yield f"{others.total():,} files in class folders are no images by their names, and are skipped ({shown})"
    beside = sum("/" not in path and is_image(path) for path in paths)
    if beside:
        yield f"{beside:,} images lie beside the class folders, and are skipped"
    nested = sorted({path.rpartition("/")[0] for path in images if path.count("/") > 1})
    if nested:
        yield f"images in folders inside of a class folder ({some(nested)}) count for the class of the outer folder"


def is_image(path: str) -> bool:
    """Returns True for the name of an image file."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES

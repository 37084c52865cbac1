"""Makes tables of the images below a folder, which are then ingested without a table of one's own: `ingest.captions_from`.

In: `ingest.input`, a folder of images, and where their captions are: in text files, or in the names of folders or files. Out: a
table in the data set (`listings/`), with the images that no earlier one has, which is ingested as any other. An image keeps the
caption that it was listed with; one that had none is listed again when it has got one.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import IMAGES, TABLES
from pipeline.dataset.purged_urls import is_purged, read_purged
from pipeline.errors import ConfigError, InputError
from pipeline.ingest.other_tables import REFUSED_ROWS
from pipeline.ingest.rows import interpreted
from pipeline.ingest.table_files import say_what_is_skipped
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet
from pipeline.storage.put_if_absent import ensure_put_if_absent
from pipeline.storage.small_text import decode_text, split_lines

logger = logging.getLogger(__name__)

FOLDER = "listings"
CAPTION_FILES = (".txt", ".caption")
ALL_IMAGES = (*IMAGES, ".jfif", ".jpe", ".heic", ".heif", ".jxl")
"""Suffixes of images, also of those that are then refused by name: a phone's HEIC is not to be passed over."""
_TABLE = re.compile(rf"(?:^|/){FOLDER}/images-([0-9]{{6}})\.parquet$")
_READERS = 16
_NOT_OF_PEOPLE = ("__MACOSX", "@eaDir")
"""Folders that archives and file servers add; their files have the names of images."""
_REMEDIES = {
    "txt": "write that of cat.jpg into cat.txt",
    "txt_lines": "write those of cat.jpg into cat.txt, one a line",
    "folder": "put the images into folders with names that describe them",
    "file_name": "give the files names that describe them",
}

Caption = str | list[str]
"""Empty where an image has none."""


def as_table_input(config: IngestConfig) -> IngestConfig:
    """The configuration under which the tables of an image folder are ingested; any other as it is.

    Raises:
        InputError: the keys are for tables.
    """
    if config.captions_from == "column":
        return config
    for key, default in (("url_column", "url"), ("caption_column", "caption"), ("bytes_column", ""), ("column_names", ())):
        if getattr(config, key) != default:
            raise InputError(
                f"ingest.{key}={getattr(config, key)}: is for tables, and with ingest.captions_from={config.captions_from} "
                "the input is a folder of images; remove one of the two"
            )
    if not config.input or not config.output:
        return config  # refused later, as for any input
    images = open_storage(config.input)
    key = "allow_s3" if images.local_path("") is None else "allow_files"
    fetch = config.fetch.model_copy(update={key: (*getattr(config.fetch, key), images.uri)})
    return config.model_copy(update={"input": open_storage(config.output).address(FOLDER), "fetch": fetch})


def list_new_images(config: IngestConfig, dry_run: bool = False) -> int:
    """Writes a table of the images that no table of the data set lists yet. Returns their number.

    Raises:
        InputError: there are no images or no captions, a caption file is no text, or an image has got another caption.
    """
    if config.captions_from == "column" or not config.input or not config.output:
        return 0
    storage = open_storage(config.output, bool(config.single_writer))
    purged = read_purged(storage)
    captions = {image: caption for image, caption in _read_captions(config).items() if not is_purged(image, purged)}
    while True:
        tables = sorted(item.path for item in storage.list(f"{FOLDER}/") if is_listing(item.path))
        listed = _read_listed(storage, tables)
        _check_unchanged(config, listed, captions)
        new = [image for image, caption in captions.items() if image not in listed or (caption and not listed[image])]
        _check_not_moved(config, listed, captions, new)
        if not new or dry_run:
            return len(new)
        ensure_put_if_absent(storage, config.single_writer, "ingest.single_writer")
        number = max((int(path[-len("000000.parquet") : -len(".parquet")]) + 1 for path in tables), default=0)
        if storage.write_if_absent(f"{FOLDER}/images-{number:06d}.parquet", _table(new, captions, config)):
            return len(new)  # otherwise another run has listed some meanwhile


def is_listing(table: str) -> bool:
    """True for a table that `list_new_images` wrote. Its rows never change, but that those of a takedown are blanked."""
    return _TABLE.search(table) is not None


def is_same_listing(one: str, other: str) -> bool:
    """True for the same table of a data set that may have been moved."""
    return is_listing(one) and is_listing(other) and one.rpartition("/")[2] == other.rpartition("/")[2]


def blank_listed(storage: Storage, names: Collection[str]) -> None:
    """Removes what the data set's tables of images say of images that are taken down: addresses, captions and folders."""
    for item in list(storage.list(f"{FOLDER}/")):
        table = read_parquet(storage.read(item.path)).combine_chunks()
        addresses = [name for batch in table.to_batches() for name in interpreted(batch.column("url"))]
        stays = pa.array([not isinstance(name, str) or name.strip() not in names for name in addresses], pa.bool_())
        if not all(stays.to_pylist()):
            columns = {name: pc.if_else(stays, table[name], pa.scalar(None, table[name].type)) for name in table.column_names}
            storage.write(item.path, _as_parquet(pa.table(columns)))


# ----------------------------------------------------------------------------------------------------------------- the folder


def _read_captions(config: IngestConfig) -> dict[str, Caption]:
    """Returns address -> caption for each image below the folder, sorted."""
    storage, subject = open_storage(config.input), f"ingest.input={config.input}"
    paths = sorted(item.path for item in storage.list("") if not _is_hidden(item.path))
    images = [path for path in paths if path.lower().endswith(ALL_IMAGES)]
    others = [path for path in paths if not path.lower().endswith(ALL_IMAGES)]
    if not images:
        tables = any(path.lower().endswith(TABLES) for path in others) or config.input.lower().endswith(TABLES)
        remedy = "tables need no ingest.captions_from, so remove it" if tables else "name a folder that does"
        raise InputError(f"{subject}: holds no images ({', '.join(ALL_IMAGES)}); {remedy}")
    if config.captions_from in ("txt", "txt_lines"):
        files = [path for path in others if path.lower().endswith(CAPTION_FILES)]
        others = [path for path in others if not path.lower().endswith(CAPTION_FILES)]
        by_image = _match(subject, images, files)
        texts = _read_texts(storage, sorted({*by_image.values()}), config.captions_from == "txt_lines")
        found = {path: texts[by_image[path]] if path in by_image else "" for path in images}
    else:
        found = {path: _from_name(path, config.captions_from == "folder") for path in images}
    say_what_is_skipped(subject, "no images", tuple(others))
    missing = [path for path, caption in found.items() if not caption]
    if len(missing) == len(images):
        raise InputError(
            f"{subject}: none of its {len(images):,} images has a caption by ingest.captions_from={config.captions_from}; "
            f"{_REMEDIES[config.captions_from]}, or give a table (docs/pictures.md)"
        )
    if missing:
        logger.warning("%s: %d of %d images have no caption, such as %s", subject, len(missing), len(images), missing[0])
    return {storage.address(path): caption for path, caption in found.items()}


def _is_hidden(path: str) -> bool:
    """True for files of systems and programs. Cameras name photographs _DSC0001.jpg, so an underscore hides nothing."""
    return any(part.startswith(".") or part in _NOT_OF_PEOPLE for part in path.split("/"))


def _from_name(path: str, of_folder: bool) -> str:
    name = PurePosixPath(path).parent.name if of_folder else PurePosixPath(path).stem
    return " ".join(name.replace("_", " ").split())


# -------------------------------------------------------------------------------------------------------------- caption files


def _match(subject: str, images: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """Returns image -> caption file: the one beside it, else the only one with its name anywhere, as in text/1.txt.

    Raises:
        InputError: an image has two caption files beside it.
    """
    beside, anywhere, alike = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list), defaultdict[str, int](int)
    for file in files:
        beside[_stem(file)].append(file)
        anywhere[PurePosixPath(file).stem].append(file)
    for image in images:
        alike[PurePosixPath(image).stem] += 1
    found: dict[str, str] = {}
    for image in images:
        near = [*beside[_stem(image)], *beside[image]]
        far = anywhere[PurePosixPath(image).stem]
        if len(near) > 1:
            raise InputError(f"{subject}: {image} has two caption files, {near[0]} and {near[1]}; remove one of them")
        if near:
            found[image] = near[0]
        elif len(far) == 1 and alike[PurePosixPath(image).stem] == 1:
            found[image] = far[0]
    say_what_is_skipped(subject, "there without an image", tuple(sorted({*files} - {*found.values()})))
    return found


def _stem(path: str) -> str:
    return path[: -len(suffix)] if (suffix := PurePosixPath(path).suffix) else path


def _read_texts(storage: Storage, files: Sequence[str], lines: bool) -> dict[str, Caption]:
    """Returns the content of each caption file: one text, or one for each line that is not blank.

    Raises:
        InputError: some are no text in UTF-8.
    """
    problems: list[str] = []

    def read(file: str) -> Caption:
        try:
            text = decode_text(storage.read(file), storage.address(file))
        except ConfigError as error:
            problems.append(str(error))
            return ""
        kept = [line for line in split_lines(text) if line]
        return kept if lines else " ".join(kept)

    with ThreadPoolExecutor(_READERS) as readers:
        texts = dict(zip(files, readers.map(read, files), strict=True))
    if problems:
        more = f" ({len(problems) - 1:,} more such files)" if len(problems) > 1 else ""
        raise InputError(f"{min(problems)}{more}")
    return texts


# ----------------------------------------------------------------------------------------------------------------- the tables


def _table(images: Sequence[str], captions: Mapping[str, Caption], config: IngestConfig) -> bytes:
    """A table of images: url, caption, and their folder, relative to that of the input."""
    root = open_storage(config.input).address("").rstrip("/")
    folders = [os.path.relpath(image.rpartition("/")[0], root) for image in images]
    kind = pa.list_(pa.string()) if config.captions_from == "txt_lines" else pa.string()
    texts = [captions[image] or None for image in images]
    columns = {"url": _names(images), "caption": pa.array(texts, kind), "folder": _names(folders)}
    return _as_parquet(pa.table(columns))


def _as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _names(paths: Sequence[str]) -> pa.Array:
    """Names as text; as bytes where one is not UTF-8, so that ingestion says so of its row."""
    try:
        return pa.array(paths, pa.string())
    except UnicodeEncodeError:
        return pa.array([os.fsencode(path) for path in paths], pa.binary())


def _read_listed(storage: Storage, tables: Sequence[str]) -> dict[str, Caption]:
    """Returns address -> caption for each listed image; the newest caption if it was listed again."""
    found: dict[str, Caption] = {}
    for path in tables:
        table = read_parquet(storage.read(path), ["url", "caption"]).combine_chunks()
        for batch in table.to_batches():
            for name, caption in zip(*(interpreted(batch.column(column)) for column in ("url", "caption")), strict=True):
                if name is not None:
                    found[os.fsdecode(name)] = caption or ""
    return found


def _check_unchanged(config: IngestConfig, listed: Mapping[str, Caption], captions: Mapping[str, Caption]) -> None:
    changed = [image for image, caption in captions.items() if listed.get(image) and listed[image] != caption]
    if changed:
        before, now = (repr(found[changed[0]]) for found in (listed, captions))
        raise InputError(
            f"ingest.input={config.input}: {len(changed):,} images have another caption than when they were ingested, such as "
            f"{changed[0]}: {before}, and now {now}; restore them, or ingest the folder into a new ingest.output"
        )


def _check_not_moved(
    config: IngestConfig, listed: Mapping[str, Caption], captions: Mapping[str, Caption], new: Sequence[str]
) -> None:
    """Raises InputError if new images have the names and captions of some in a folder that was listed before."""
    others = {(image.rpartition("/")[2], str(caption)): image for image, caption in listed.items() if image not in captions}
    same = [other for image in new if (other := others.get((image.rpartition("/")[2], str(captions[image]))))]
    if len(same) >= REFUSED_ROWS and not config.allow_copies:
        raise InputError(
            f"ingest.input={config.input}: {len(same):,} of its images have the names and captions of some that the data set "
            f"has from another place, such as {same[0]}; if the folder was moved, move it back; if these are others, or are "
            "to be there twice, add ingest.allow_copies=true"
        )

"""Lists the files that an input names: one file, a folder or a glob; local or s3.

In: `ingest.input` or `index.input`. Out: addresses, sorted. What a folder or a glob skips is said once, in a line.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from pipeline.dataset.manifest import IMAGES
from pipeline.errors import InputError
from pipeline.ingest import text_tables
from pipeline.ingest.text_source import GZIP_SUFFIX
from pipeline.storage.address import open_storage, real_address
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", *text_tables.SUFFIXES)
WRITTEN = re.compile(r"(|.*/)(?:manifests/[0-9]{8}|(?:partitions|inputs)/[0-9a-f]{16})\.json")
"""Files by which a data set of jobs/ingest.py is known, also one that is not committed yet."""
_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
"""Lists and ranges as a shell and webdataset write them: {00000..00009}, {train,val}."""
NAMED_FILES = 3
"""Number of skipped files that are named."""


def list_tables(pattern: str) -> list[str]:
    """Addresses of the tables that a file, folder or glob names, sorted. Raises InputError if there are none."""
    return list_files(pattern, SUFFIXES, "ingest.input")


def list_files(pattern: str, suffixes: tuple[str, ...], key: str) -> list[str]:
    """Addresses of the files with one of the suffixes that a file, folder or glob names, sorted.

    Suffixes count in any case. Below a folder and in a glob, hidden files and those in hidden folders (`.name`, `_name`) are
    skipped, and so is a file that is there compressed, too. What was skipped is said once.

    Args:
        key: the configuration's key, for the message.

    Raises:
        InputError: there are none.
    """
    if not pattern:
        raise InputError(f"{key}: is empty; name a file, a folder or a glob ({', '.join(suffixes)})")
    root, wanted = _split_glob(pattern)
    storage = open_storage(root)
    data_sets: set[str] = set()
    if not _is_file(storage):
        _check_links(f"{key}={pattern}", storage, suffixes, wanted)
    if wanted is not None:
        paths = [item.path for item in storage.list("")]
        data_sets = _data_sets(paths)
        deeper = [path for path in paths if fnmatch.fnmatchcase(path, wanted) and path.lower().endswith(suffixes)]
        paths = [path for path in paths if _matches(path.split("/"), wanted.split("/"))]
        found = [path for path in paths if not _is_hidden(path, wanted)]
        below = tuple(sorted({*deeper} - {*paths}))
        say_what_is_skipped(f"{key}={pattern}", "further down, where * does not reach (** does)", below)
    elif _is_file(storage):
        paths = found = [""]
    else:
        paths = [item.path for item in storage.list("")]
        data_sets = _data_sets(paths)
        if suffixes == SUFFIXES:
            _refuse_table_formats(f"{key}={pattern}", paths)
        found = [path for path in paths if path.lower().endswith(suffixes) and not _is_hidden(path)]
    own = {path for path in found if suffixes == SUFFIXES and any(path.startswith(folder) for folder in data_sets)}
    found = [path for path in found if path not in own]
    twins = [path for path in found if path.lower().endswith(GZIP_SUFFIX) and path[: -len(GZIP_SUFFIX)] in found]
    found = [path for path in found if path not in twins]
    if not found and _BRACES.search(pattern):
        glob = _BRACES.sub("*", pattern)
        raise InputError(f"{key}={pattern}: there is no such file, and braces are not expanded; write a glob, as in '{glob}'")
    if not found:
        raise InputError(f"{key}={pattern}: {_why_none(storage, paths, suffixes)}")
    for address in map(storage.address, found):
        if not address.lower().endswith(suffixes):
            raise InputError(f"{key}={address}: is not a supported file; use {', '.join(suffixes)}")
    if suffixes == SUFFIXES:
        keys = {part.partition("=")[0] for path in found for part in path.split("/")[:-1] if "=" in part}
        _say_what_folders_are_called(f"{key}={pattern}", tuple(sorted(keys)))
    say_what_is_skipped(f"{key}={pattern}", "part of a data set of jobs/ingest.py", tuple(sorted(own)))
    others = tuple(sorted({*paths} - {*found, *twins, *own}))
    say_what_is_skipped(f"{key}={pattern}", "no tables" if suffixes == SUFFIXES else f"no {'/'.join(suffixes)} files", others)
    say_what_is_skipped(f"{key}={pattern}", "there without compression, too", tuple(twins))
    return sorted(map(storage.address, found))


def _why_none(storage: Storage, paths: Sequence[str], suffixes: tuple[str, ...]) -> str:
    arrow = next((path for path in paths if path.endswith(".arrow")), None)
    if arrow is not None and suffixes == SUFFIXES:
        folder = storage.address(arrow).rpartition("/")[0]
        return (
            'is a Hugging Face data set as arrow files; write it as parquet, and name that: python -c "import datasets; '
            f"datasets.load_from_disk('{folder}').to_parquet('TABLE.parquet')\""
        )
    images = sum(path.lower().endswith(IMAGES) for path in paths)
    if images:
        what = f"holds {images:,} images and no {'/'.join(suffixes)}"
        if suffixes != SUFFIXES:
            return f"{what}; jobs/ingest.py makes a data set of images (docs/pictures.md)"
        return (
            f"{what}; say where their captions are: ingest.captions_from=txt (in files beside them), folder or file_name (in "
            "these names), or give a table that names the images (docs/pictures.md)"
        )
    return f"there is no such file ({', '.join(suffixes)}); give a file, a folder or a glob that matches some"


def tables_named(pattern: str, addresses: Iterable[str]) -> set[str]:
    """Those of some tables' addresses that a file, folder or glob names, whether or not the tables are still there."""
    root, wanted = _split_glob(pattern)
    uri = real_address(open_storage(root).uri)
    found = set()
    for address in addresses:
        real = real_address(address)
        below = real.removeprefix(f"{uri.rstrip('/')}/")
        if real == uri or (below != real and (wanted is None or _matches(below.split("/"), wanted.split("/")))):
            found.add(address)
    return found


def _data_sets(paths: Iterable[str]) -> set[str]:
    """Prefixes of what jobs/ingest.py has written below a folder, whose tables are no input of the next run."""
    roots = {found[1] for path in paths if (found := WRITTEN.fullmatch(path))}
    return {f"{root}{folder}/" for root in roots for folder in ("shards", "inputs", "retries", "listings")}


def _refuse_table_formats(subject: str, paths: Iterable[str]) -> None:
    """Raises InputError for a folder whose log says which files count: others hold rows that were deleted or replaced."""
    logs = {"_delta_log": "Delta Lake", ".hoodie": "Apache Hudi"}
    for path in paths:
        name = next((logs[part] for part in path.split("/") if part in logs), None)
        name = name or ("Apache Iceberg" if path.endswith(".metadata.json") and "metadata" in path.split("/") else None)
        if name is not None:
            raise InputError(
                f"{subject}: is a table of {name}, whose folder also holds files with rows that were deleted or replaced; "
                "export its current version as parquet files, and name their folder"
            )


def _check_links(subject: str, storage: Storage, suffixes: tuple[str, ...], wanted: str | None) -> None:
    """Names linked folders, which are not followed. Raises InputError for a file that is a link to what is not there."""
    root = storage.local_path("")
    links = [path for path in sorted(root.rglob("*")) if path.is_symlink()] if root is not None else []
    parts = wanted.split("/") if wanted is not None else ["**"]
    folders = []
    for link in links:
        path = link.relative_to(root or "/").as_posix()
        is_table = path.lower().endswith(suffixes) and not _is_hidden(path, wanted or "")
        if not link.exists():
            if is_table and _matches(path.split("/"), parts):
                raise InputError(
                    f"{subject}: {link} is a link to a file that is not there; fetch the file (git annex get, dvc pull) or "
                    "remove the link"
                )
        elif link.is_dir() and _may_hold(path.split("/"), parts):
            folders.append(path)
    say_what_is_skipped(subject, "only linked, and links are not followed", tuple(folders), "folder")


def _is_hidden(path: str, wanted: str = "") -> bool:
    """True if a part of a path starts with . or _, and the pattern does not ask for such a part."""
    asked = wanted.split("/")
    return any(
        part.startswith((".", "_")) and not any(one[:1] == part[0] and fnmatch.fnmatchcase(part, one) for one in asked)
        for part in path.split("/")
    )


@cache  # a job lists its input more than once
def say_what_is_skipped(subject: str, reason: str, paths: tuple[str, ...], noun: str = "file") -> None:
    if paths:
        found = f"1 {noun} that is" if len(paths) == 1 else f"{len(paths):,} {noun}s that are"
        more = ", ..." if len(paths) > NAMED_FILES else ""
        logger.warning("%s: skipped %s %s: %s%s", subject, found, reason, ", ".join(paths[:NAMED_FILES]), more)


@cache
def _say_what_folders_are_called(subject: str, keys: tuple[str, ...]) -> None:
    if keys:
        shown = ", ".join(f"{key}=..." for key in keys)
        logger.warning(
            "%s: the values in the names of folders (%s) become no columns; write them into the tables", subject, shown
        )


def _is_file(storage: Storage) -> bool:
    """True if an address is that of a file or object itself."""
    folder, _, name = storage.uri.rpartition("/")
    return folder not in ("s3:/", "s3:") and open_storage(folder or "/").exists(name)


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """True if a path matches a glob, part by part: * stays within a folder, and ** is any number of folders, also none."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[start:], wanted[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _may_hold(folder: Sequence[str], wanted: Sequence[str]) -> bool:
    """True if a glob asks for files within a folder."""
    return any(_matches(folder, wanted[:count]) for count in range(1, len(wanted))) or wanted[-1] == "**"


def _split_glob(pattern: str) -> tuple[str, str | None]:
    """(folder before the first wildcard, pattern relative to it), or None if there is none or such a path exists."""
    wild = re.search(r"[*?\[]", pattern)
    if wild is None or Path(pattern).exists():
        return pattern, None
    folder = pattern[: wild.start()].rpartition("/")[0]
    return folder or ".", pattern[len(folder) + 1 :] if folder else pattern

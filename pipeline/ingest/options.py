"""The options that rows are ingested under: those that decide what a sample looks like. The data set keeps them.

In: the configuration. Out: the options' fingerprint, which partition records carry, and the file `options/{fingerprint}.json`,
from which a later run can tell how rows of other tables, or rows that it retries, were made. Earlier releases wrote no such
file, and ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import short_hash
from pipeline.storage.base import Storage

FOLDER = "options"


def options_fingerprint(config: IngestConfig) -> str:
    """16 hex digits over the options that change the bytes of a shard."""
    return _fingerprint(config, config.image.fingerprint_options())


def fingerprints_of_alike(config: IngestConfig) -> set[str]:
    """The fingerprints of all options that give the same pixels and captions: png loses nothing at any level.

    Earlier releases took the quality of a jpg, up to 100, for a png too.
    """
    image = config.image.fingerprint_options()
    qualities = range(101) if config.image.format == "png" else (image["quality"],)
    return {_fingerprint(config, image | {"quality": quality}) for quality in qualities}


def keep_options(storage: Storage, config: IngestConfig) -> None:
    """Writes the options into the data set, under their fingerprint."""
    text = json.dumps(_samples_options(config), indent=1, sort_keys=True)
    storage.write_if_absent(_path(options_fingerprint(config)), text.encode())


def other_options(storage: Storage, fingerprints: Iterable[str], config: IngestConfig) -> list[str] | None:
    """Options of other rows of the data set that differ from these, as `KEY=VALUE`; None if the data set does not tell."""
    others = sorted(set(fingerprints) - fingerprints_of_alike(config))
    known = {item.path for item in storage.list(f"{FOLDER}/")}
    if any(_path(fingerprint) not in known for fingerprint in others):
        return None
    wanted = _samples_options(config)
    found = dict[str, None]()
    for fingerprint in others:
        stored = json.loads(storage.read(_path(fingerprint)))
        format_key, quality_key = "ingest.image.format", "ingest.image.quality"
        lossless = stored.get(format_key) == wanted[format_key] == "png"
        for key in sorted(stored.keys() | wanted.keys()):
            if stored.get(key) != wanted.get(key) and not (lossless and key == quality_key):
                found[f"{key}={json.dumps(stored.get(key))}"] = None
    return list(found)


def _path(fingerprint: str) -> str:
    return f"{FOLDER}/{fingerprint}.json"


def _samples_options(config: IngestConfig) -> dict[str, Any]:
    """The options that decide what a sample looks like, by key; names of columns, which may differ by table, do not."""
    image, caption = config.image.fingerprint_options(), config.caption.model_dump()
    return {f"ingest.image.{name}": value for name, value in image.items()} | {
        f"ingest.caption.{name}": value for name, value in caption.items()
    }


def _fingerprint(config: IngestConfig, image: dict[str, Any]) -> str:
    columns = [config.url_column, config.caption_column, config.bytes_column]
    options = {"columns": columns, "image": image, "caption": config.caption.model_dump()}
    if config.column_names:
        options["column_names"] = list(config.column_names)
    return short_hash(options)

"""Turns the members of one key into a sidecar row: its image, caption, status and reason, and the values of its json member.

In: groups of members (pipeline/dataset/tar_members.py). Out: rows, and their table.
"""

from __future__ import annotations

import codecs
import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.config import IndexConfig
from pipeline.dataset.columns import json_text
from pipeline.dataset.json_members import JsonMember, caption_texts, parse_member
from pipeline.dataset.purged_urls import MESSAGE, REASON, is_purged
from pipeline.dataset.shard import COLUMNS, IMAGE_EXTENSIONS, member_place, sidecar_table, types_to_try
from pipeline.dataset.tar_members import Group, Member, Skipped
from pipeline.errors import Failure
from pipeline.storage.small_text import is_wide
from pipeline.transform.caption import is_empty
from pipeline.transform.content_names import refusal
from pipeline.transform.image import upright_size

IMAGE_BYTES, TEXT_BYTES = 1 << 30, 16 << 20
"""Larger images and texts are not read."""
MAX_COLUMNS = 1000
"""Columns that the json members of a tar can add to its sidecar."""
REPEATED, SCATTERED = "repeated_key", "scattered_key"
_INDEX_AGAIN = "and index it into a new index.output"
_PACK_SORTED = f"pack the tar again, sorted by name (set -C; tar --sort=name -c -C FOLDER . > NEW.tar), {_INDEX_AGAIN}"
_RENAME = f"pack the tar again with a name of its own for each sample, {_INDEX_AGAIN}"
_PACK_WHOLE = f"no range of the tar holds a sparse file; pack it again without --sparse, {_INDEX_AGAIN}"
_ADOPTED = ("url", "exif", "width", "height", "original_width", "original_height", "original_sha256")
"""Our columns that a json member may fill."""
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def is_read(extension: str, number: int, info: tarfile.TarInfo) -> bool:
    """Returns whether a row needs the content of a member; see `group_members`."""
    limit = IMAGE_BYTES if extension in IMAGE_EXTENSIONS else TEXT_BYTES if extension in ("json", "txt") else 0
    return number == 0 and not info.issparse() and info.size <= limit


def row_of(group: Group, config: IndexConfig, skipped: Skipped | None = None) -> dict[str, Any]:
    """The sidecar row of a group.

    Of several images, the first of `IMAGE_EXTENSIONS` is the sample's. Offsets, sizes and sha256 are of that one.

    Args:
        skipped: collects json members that cannot be read.
    """
    image = next((group.members[extension] for extension in IMAGE_EXTENSIONS if extension in group.members), None)
    member = _json_member(group.members["json"]) if "json" in group.members else JsonMember({}, frozenset())
    if skipped is not None and member is None:
        skipped.add("json members that are no object in UTF-8", group.key)
    member = member or JsonMember({}, frozenset())
    if skipped is not None and member.repeated:
        skipped.add("json members that hold a name twice, with values that differ", f"{group.key} ({min(member.repeated)})")
    inside = next((name for name, value in member.values.items() if value is not None and not _has_column(value)), None)
    if skipped is not None and inside is not None:
        skipped.add("json members with objects or lists of more than texts, which get no columns", f"{group.key} ({inside})")
    metadata = member.values
    caption = _caption(group, member, config)
    row: dict[str, Any] = dict.fromkeys(COLUMNS.names) | {"key": group.key, "url": ""}
    row |= {name: metadata[name] for name in _ADOPTED if name in metadata and _fits(name, metadata[name])}
    row["caption"] = "" if isinstance(caption, Failure) else caption
    outcome = _judged(group, image, caption)
    if isinstance(outcome, Failure):
        row |= {"status": outcome.status, "reason": outcome.reason, "error_message": outcome.message}
        return row | _others(metadata, row)
    assert image is not None  # a group without one is judged a failure
    row |= outcome | {"status": "success", "reason": "success"} | member_place("jpg", image.offset, image.size_bytes)
    text, values = group.members.get("txt"), group.members.get("json")
    if values is not None and not values.is_sparse:
        row |= member_place("json", values.offset, values.size_bytes)
    # Without the place of a txt member, training reads the caption from the sidecar.
    if text is not None and not config.caption_key and (text.content or b"").decode("utf-8", "replace") == caption:
        row |= member_place("txt", text.offset, text.size_bytes)
    return row | _others(metadata, row)


def mark_scattered(rows: Sequence[dict[str, Any]]) -> None:
    """Gives a reason to rows with a key that came before in the tar, or comes again: of each key, one sample stays.

    A sample's members lie side by side, for webdataset and for range reads.
    """
    places = defaultdict[str, list[dict[str, Any]]](list)
    for row in rows:
        if row["reason"] != REPEATED:
            places[row["key"]].append(row)
    for several in (found for found in places.values() if len(found) > 1):
        kept = next((row for row in several if row["status"] == "success"), None)
        for row in several:
            if row["status"] == "success" and row is not kept:
                mark_repeated(row)
            elif row["reason"] in ("no_image", "empty_caption"):
                _drop(
                    row, SCATTERED, f"the members of this key do not lie side by side; {_PACK_SORTED} ({row['error_message']})"
                )


def mark_repeated(row: dict[str, Any]) -> None:
    """Gives a reason to the row of a key that has a sample already."""
    _drop(row, REPEATED, f"the tar holds this name more than once, and the first is used; {_RENAME}")


def drop_purged(rows: Sequence[dict[str, Any]], purged: Collection[str]) -> None:
    """Drops samples whose URL was purged from the data set."""
    for row in rows:
        if row["status"] == "success" and is_purged(row["url"], purged):
            _drop(row, REASON, MESSAGE)


def _drop(row: dict[str, Any], reason: str, message: str) -> None:
    places = {name: None for name in COLUMNS.names if name.endswith(("_offset", "_size"))}
    row |= {"status": "dropped", "reason": reason, "error_message": message, "sha256": None} | places


def table_of(rows: Sequence[dict[str, Any]], skipped: Skipped | None = None) -> pa.Table:
    """The sidecar's table: our columns, then the other values of the json members, each column with one type or as text.

    Args:
        skipped: collects names beyond `MAX_COLUMNS`.
    """
    captions = [row["caption"] for row in rows]
    table = sidecar_table([{name: row[name] for name in COLUMNS.names} | {"caption": ""} for row in rows])
    if any(isinstance(caption, list) for caption in captions):
        listed = [caption if isinstance(caption, list) else [caption] if caption else [] for caption in captions]
        table = table.set_column(COLUMNS.names.index("caption"), "caption", pa.array(listed, pa.list_(pa.string())))
    else:
        table = table.set_column(COLUMNS.names.index("caption"), "caption", pa.array(captions, pa.string()))
    others: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        for name in row.keys() - set(COLUMNS.names) if len(others) < MAX_COLUMNS else row.keys() & others.keys():
            others.setdefault(name, [None] * len(rows))[number] = row[name]
        beyond = row.keys() - set(COLUMNS.names) - others.keys()
        if skipped is not None and beyond:
            skipped.add(f"json members with names beyond the first {MAX_COLUMNS:,}", f"{row['key']} ({min(beyond)})")
    for name in sorted(others):
        table = table.append_column(name, _column(others[name]))
    return table


def _column(values: list[Any]) -> pa.Array:
    for kind in types_to_try(values):
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError):
            continue
    return _texts([None if value != value else value for value in values])


def _texts(values: list[Any]) -> pa.Array:
    """Values without a common type as text or, if there is a list among them, as lists of texts.

    Text stays as it was written, for captions and conditions; all else is JSON.
    """
    if any(isinstance(value, list) for value in values):
        lists = [value if value is None or isinstance(value, list) else [json_text(value)] for value in values]
        return pa.array(lists, pa.list_(pa.string()))
    return pa.array([None if value is None else json_text(value) for value in values], pa.string())


def _judged(group: Group, image: Member | None, caption: str | list[str] | Failure) -> Failure | dict[str, Any]:
    """The image's size and hash, or the reason why the group is no sample."""
    if image is None:
        names = ", ".join(f".{name}" for name in [*group.members][:5])
        rule = "a key ends at the first dot, and its image is KEY.jpg, .jpeg, .png or .webp"
        return Failure("dropped", "no_image", f"the key has only {names}; {rule}")
    if image.is_sparse:
        return Failure("dropped", "sparse_member", f"the image is stored as a sparse file; {_PACK_WHOLE}")
    if image.content is None:
        return Failure("dropped", "too_large", f"the image has {image.size_bytes:,} bytes, more than {IMAGE_BYTES:,}")
    if isinstance(caption, Failure):
        return caption
    try:
        width, height = upright_size(image.content)
    except Image.UnidentifiedImageError:
        return Failure("failed_to_resize", *refusal(image.content))
    except Exception as error:  # decoders raise anything on broken data
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Failure("failed_to_resize", "not_an_image", message)
    return {"width": width, "height": height, "sha256": hashlib.sha256(image.content).hexdigest()}


def _caption(group: Group, member: JsonMember, config: IndexConfig) -> str | list[str] | Failure:
    """The caption, or several: of the txt member, or of the json member if a key is configured or there is no txt member."""
    text = group.members.get("txt")
    if text is not None and not config.caption_key:
        if text.is_sparse:
            return Failure("dropped", "sparse_member", f"the txt member is stored as a sparse file; {_PACK_WHOLE}")
        if text.content is None:
            return Failure("dropped", "too_large", f"the txt member has {text.size_bytes:,} bytes, more than {TEXT_BYTES:,}")
        try:
            content = _decode(text.content)
        except UnicodeDecodeError as error:
            return Failure("dropped", "bad_caption", f"the txt member is not UTF-8: {error.reason} at byte {error.start}")
        if is_wide(content):
            message = "the txt member looks like UTF-16 without a byte order mark, by its every other byte; write it in UTF-8"
            return Failure("dropped", "bad_caption", f"{message}, {_INDEX_AGAIN}")
        return _no_caption("the txt member is empty") if is_empty(content) else content
    key = config.caption_key or "caption"
    if key in member.repeated:
        return Failure("dropped", "bad_caption", f"the json member holds {key} twice, with values that differ; remove one")
    if key not in member.values:
        if "json" not in group.members:
            return _no_caption("there is no txt and no json member" if text is None else "there is no json member")
        names = ", ".join([*member.values][:10]) or "no values that can be read"
        return _no_caption(f"the json member has no {key}; it has {names}")
    texts = caption_texts(member.values[key])
    if texts is None:
        return Failure("dropped", "bad_caption", f"the value of {key} in the json member is neither text nor a list of texts")
    texts = [one for one in texts if not is_empty(one)]
    if not texts:
        return _no_caption(f"the value of {key} in the json member is empty")
    return texts if len(texts) > 1 else texts[0]


def _no_caption(message: str) -> Failure:
    return Failure("dropped", "empty_caption", message)


def _json_member(member: Member) -> JsonMember | None:
    """The values of a json member, as they can be stored; None if it is not an object that can be read."""
    try:
        found = parse_member(_decode(member.content or b""))
    except UnicodeDecodeError:
        return None
    return found and JsonMember(_storable(found.values), frozenset(map(_storable, found.repeated)))


def _storable(value: Any) -> Any:
    """A JSON value in which all text can be written as UTF-8: halves of surrogate pairs are replaced."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_storable(part) if isinstance(part, str) else part for part in value]
    if isinstance(value, dict):
        return {_storable(name): part if isinstance(part, dict) else _storable(part) for name, part in value.items()}
    return value


def _others(metadata: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The json member's text, numbers and lists of text for columns of their own.

    Objects and other lists stay in the tar. A value under the name of one of our columns that differs from ours is called
    `source_NAME`.
    """
    found = {}
    for name, value in metadata.items():
        if not _has_column(value):
            continue
        if name not in row:
            found[name] = value
        elif value != row[name]:
            names = [f"source_{name}", *(f"source_{name}_{number}" for number in range(2, len(metadata) + 3))]
            found[next(free for free in names if free not in metadata)] = value
    return found


def _has_column(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return isinstance(value, str | int | float) or is_list


def _fits(name: str, value: object) -> bool:
    """Returns whether a value of the json has the type of our column."""
    if str(COLUMNS.field(name).type) == "string":
        return isinstance(value, str)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _decode(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Raises UnicodeDecodeError."""
    for mark, encoding in _BOMS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding)
    return content.decode()

"""Reads weights: a file of any format that is recognised by its content, or a folder with weights and what describes them.

In: a path. Out: a state dict with the published keys, and the facts that are stated about it. Only tensors are unpickled; a
TorchScript archive, the format of OpenAI's published weights, is a program and is loaded only if that is allowed.

model/weight_folders.py chooses the files, model/file_formats.py tells their formats, model/clip_search.py finds the CLIP in
them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.clip_search import find_clip
from model.config import ARCHITECTURES
from model.file_formats import format_of
from model.foreign_config import (
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_VOCABULARIES,
    OPEN_CLIP_CONFIG,
    Stated,
    check_vocabulary,
    stated_by_hugging_face,
    stated_by_open_clip,
)
from model.state_dict_keys import from_hugging_face, is_hugging_face
from model.torch_files import read_torch, read_torchscript
from model.weight_folders import (
    CHECKPOINT_RECORD,
    HUGGING_FACE_WEIGHTS,
    OPEN_CLIP_WEIGHTS,
    choose_files,
    files_of,
    shards_of,
)
from model.weight_values import checked_values, doubts

__all__ = ["HUGGING_FACE_WEIGHTS", "OPEN_CLIP_WEIGHTS", "Weights", "choose_files", "files_of", "read_weights"]
_MAX_PATHS, _MAX_DEPTH = 10_000, 4
_TAIL_ROWS = 2
"""Rows of zeros at the end of the last matrix that are no values which training has left; one may be of a dead unit."""
_NAME_ELSEWHERE = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Weights:
    """A state dict with the published keys.

    Attributes:
        activation: the activation that its file, or the configuration beside it, states; None if neither does.
        stated: facts of the configuration; None if there is none.
        notices: lines about what was chosen among several, and what was ignored.
        unstated: why the activation is unknown, for a folder without a configuration; otherwise empty.
    """

    state: dict[str, Tensor]
    activation: str | None
    stated: Stated | None
    notices: tuple[str, ...] = ()
    unstated: str = ""


def read_weights(path: Path, allow_torchscript: bool = False) -> Weights:
    """Reads the weights of a file or a folder, and the facts that are stated about them.

    Raises:
        ValueError: there are no readable weights, or their configuration describes a CLIP that is not supported.
    """
    try:
        return _read_weights(path.expanduser(), allow_torchscript)
    except OSError as error:
        raise ValueError(f"weights={path}: cannot be read ({error.strerror}); make it readable, or give another one") from None
    except ValueError as error:
        raise ValueError(f"weights={path}: {error}") from None


def _read_weights(path: Path, allow_torchscript: bool) -> Weights:
    if path.is_dir():
        folder, names = path, choose_files(_paths(path))
    elif path.is_file():
        folder, names = path.parent, files_of(path.name, [item.name for item in path.parent.iterdir()])
    else:
        raise ValueError(_no_such_file(path))
    stated = _read_stated(folder, names[1:])
    try:
        _check_digest(folder, names)
        content, activation = _read_content(folder / names[0], allow_torchscript)
        found = find_clip(content)
        state = checked_values(_published(found.state, names))
    except ValueError as error:
        raise ValueError(f"{names[0]} {error}" if path.is_dir() else str(error)) from None
    if stated is not None:
        _check_image_size(stated, state)
    if stated is not None and activation is not None and activation != stated.activation:
        raise ValueError(
            f"{names[0]} says that it was trained with {activation}, but {stated.source} says {stated.activation}; correct the "
            "one that is wrong"
        )
    notices = tuple(f"{names[0]} {notice}" for notice in (*found.notices, *doubts(state)))
    if names[1:] == (CHECKPOINT_RECORD,) or "/" in names[0]:
        notices = (f"reads {names[0]}", *notices)
    unstated = ""
    if path.is_dir() and stated is None and activation is None:
        unstated = (
            f"has no {OPEN_CLIP_CONFIG} or {HUGGING_FACE_CONFIG}, which states how {names[0]} was trained; restore it, or give "
            "the activation: quick_gelu or gelu"
        )
    return Weights(state, activation if stated is None else stated.activation, stated, notices, unstated)


def _check_image_size(stated: Stated, state: dict[str, Tensor]) -> None:
    """Raises ValueError if the stated image size is not that of the learned positions: open_clip would interpolate them."""
    key = next((key for key in ("visual.positional_embedding", "visual.attnpool.positional_embedding") if key in state), None)
    step = stated.facts["patch_size_px"] or 32
    if key is None or not isinstance(step, int) or state[key].ndim != 2:
        return  # of another architecture, as the comparison of shapes will say
    side = math.isqrt(max(0, len(state[key]) - 1)) * step
    if stated.image_size not in (side, [side, side]):
        raise ValueError(
            f"{stated.source} says image_size={stated.image_size}, but the weights' positions are for {side} px; correct "
            "it, or restore the file that was published with the weights"
        )


def _no_such_file(path: Path) -> str:
    if str(path) in ARCHITECTURES:
        return "there is no such file: it names an architecture, and weights are read from a file or folder, whose path to give"
    if _NAME_ELSEWHERE.fullmatch(str(path)) and not path.suffix and not path.parent.exists():
        repository = str(path).removeprefix("hf-hub:")
        return f"there is no such file, and names are not looked up; download it: hf download {repository} --local-dir FOLDER"
    return "there is no such file; give the path of a state dict, or of a folder that holds one"


def _paths(folder: Path) -> list[str]:
    """Paths of the files in a folder and a few levels below it, relative to it."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        inner = Path(parent).relative_to(folder)
        if len(inner.parts) >= _MAX_DEPTH:
            folders.clear()
        found += [(inner / file).as_posix() for file in files]
        if len(found) > _MAX_PATHS:
            break
    return found


def _read_stated(folder: Path, descriptions: tuple[str, ...]) -> Stated | None:
    """The facts that a folder's configurations state."""
    if not descriptions or descriptions[0].endswith(CHECKPOINT_RECORD):
        return None
    contents = {name: _read_json(folder / name) for name in descriptions}
    try:
        if descriptions[0] == OPEN_CLIP_CONFIG:
            return stated_by_open_clip(contents[OPEN_CLIP_CONFIG])
        vocabularies = {name: contents.pop(name) for name in HUGGING_FACE_VOCABULARIES if name in contents}
        stated = stated_by_hugging_face(*contents.values())
        for name, content in vocabularies.items():
            check_vocabulary(name, content)
        return stated
    except ValueError as error:
        raise ValueError(f"{descriptions[0]}: {error}") from None
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{descriptions[0]}: is not the configuration of a CLIP; restore the published file") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path.name}: is not JSON ({error}); download or export it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: holds a {type(content).__name__}, not a mapping; download or export it again")
    return content


def _check_digest(folder: Path, names: tuple[str, ...]) -> None:
    """Raises ValueError if a file of a checkpoint of ours is not the one that was written."""
    if not names[1:] or not names[1].endswith(CHECKPOINT_RECORD):
        return
    record = _read_json(folder / names[1])
    try:
        expected = record["files"][Path(names[0]).name]["sha256"]
    except (KeyError, TypeError):
        raise ValueError(f"is not listed in {names[1]}, which is damaged; give another checkpoint") from None
    with (folder / names[0]).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise ValueError(f"does not match the sha256 in {names[1]}, so it is damaged; give another checkpoint")


def _read_content(path: Path, allow_torchscript: bool) -> tuple[Any, str | None]:
    """Content of a file, and the activation that it states."""
    kind = format_of(path)
    if kind == "index":
        return _read_shards(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "torch":
        return read_torch(path), None
    if not allow_torchscript:
        raise ValueError(
            "is a TorchScript archive, which is a program and is loaded only if that is allowed; if you trust its "
            "origin (OpenAI's published files have this format), set model.allow_torchscript=true, or give --allow-torchscript"
        )
    return read_torchscript(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    except (SafetensorError, KeyError):  # its size is right (model/file_formats.py)
        raise ValueError(
            "is not a complete safetensors file (its header is damaged or has unknown dtypes); download or export it again"
        ) from None
    _check_tail(path, state)
    if "format" in metadata and metadata["format"] in ("tf", "flax", "jax", "mlx"):
        raise ValueError(f"holds weights of {metadata['format']}, whose layouts differ; use the file for PyTorch")
    return state, metadata["activation"] if "activation" in metadata else None


def _check_tail(path: Path, state: dict[str, Tensor]) -> None:
    """Raises ValueError if the last rows in the file are zeros: a file that was preallocated has its size from the start.

    `checked_values` refuses matrices that are zero as a whole.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    for key in sorted(header, key=lambda key: header[key]["data_offsets"][1], reverse=True):
        value = state[key]
        if value.numel() and bool(value.any()):
            if value.ndim > 1 and len(value) > _TAIL_ROWS and not bool(value[-_TAIL_ROWS:].any()):
                raise ValueError(f"ends with zeros within {key}, as if a download had stopped; download or export it again")
            return


def _read_shards(index: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of all shards that an index names."""
    state: dict[str, Tensor] = {}
    activations: dict[str, str] = {}
    for shard, keys in shards_of(index).items():
        file = index.parent / shard
        if not file.is_file():
            raise ValueError(f"names {shard}, which is missing; download it too")
        try:
            if format_of(file) not in ("safetensors", "torch"):
                raise ValueError("is no file of tensors; download it again")
            content, stated = _read_content(file, False)
        except ValueError as error:
            raise ValueError(f"names {shard}, which {error}") from None
        if not isinstance(content, dict) or not all(key in content for key in keys):
            missing = next((key for key in keys if not isinstance(content, dict) or key not in content), "")
            raise ValueError(f"says that {shard} holds {missing}, which it does not; download both again")
        twice = next((key for key in content if key in state), None)
        if twice is not None:
            raise ValueError(f"names {shard}, which holds {twice} again, as another shard does; download them again")
        state |= content
        activations |= {stated: shard} if stated is not None else {}
    if len(activations) > 1:
        said = " and ".join(f"{shard} states activation={activation}" for activation, shard in activations.items())
        raise ValueError(f"names files of different models: {said}; download them again")
    return state, next(iter(activations), None)


def _published(state: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Renames to the published keys."""
    if is_hugging_face(state):
        return from_hugging_face(state)
    if HUGGING_FACE_CONFIG in names:
        raise ValueError(
            f"lacks the keys of a CLIPModel, which {HUGGING_FACE_CONFIG} promises; give a copy of the file in another folder"
        )
    return state

"""Reads weights written by other tools: one file, or a folder with weights and their configuration.

In: a path. Out: a state dict with the published keys, and the facts that its configuration states. Only tensors are unpickled;
a TorchScript archive, the format of OpenAI's published weights, is a program and is loaded only if that is allowed.

Files that are read from a folder, in order of precedence:
    open_clip_config.json    open_clip_model.safetensors, open_clip_pytorch_model.{safetensors,bin,pth}
    config.json              model.safetensors, pytorch_model.bin (Hugging Face's CLIPModel)
    open_clip_config.json    model.safetensors, pytorch_model.bin
A file with one of these names is also read with the configuration beside it; any other file is read alone.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.foreign_config import (
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_PREPROCESSORS,
    OPEN_CLIP_CONFIG,
    Stated,
    stated_by_hugging_face,
    stated_by_open_clip,
)
from model.state_dict_keys import from_hugging_face, is_hugging_face

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
HUGGING_FACE_WEIGHTS = "model.safetensors"
_OPEN_CLIPS = (OPEN_CLIP_WEIGHTS, *(f"open_clip_pytorch_model.{suffix}" for suffix in ("safetensors", "bin", "pth")))
_ANYBODYS = (HUGGING_FACE_WEIGHTS, "pytorch_model.bin")
_PAIRS = ((OPEN_CLIP_CONFIG, _OPEN_CLIPS), (HUGGING_FACE_CONFIG, _ANYBODYS), (OPEN_CLIP_CONFIG, _ANYBODYS))
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold besides the weights."""


@dataclass(frozen=True)
class Weights:
    """A state dict with the published keys.

    Attributes:
        activation: the activation that its file, or the configuration beside it, states; None if neither does.
        stated: facts of the configuration; None if there is none.
    """

    state: dict[str, Tensor]
    activation: str | None
    stated: Stated | None


def choose_files(names: Collection[str]) -> tuple[str, ...]:
    """Names of the files to read from a folder with these names: the weights first, then their configurations.

    Raises:
        ValueError: it is neither an export nor a folder of open_clip or Hugging Face.
    """
    for config, files in _PAIRS:
        for file in files:
            if config in names and file in names:
                return files_of(file, names)
    weights = sorted(name for name in names if Path(name).suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if weights and not {OPEN_CLIP_CONFIG, HUGGING_FACE_CONFIG} & set(names):
        raise ValueError(
            f"has no {OPEN_CLIP_CONFIG} or {HUGGING_FACE_CONFIG}, which states how {weights[0]} was trained; restore it, "
            "or give the path of the file and its activation"
        )
    raise ValueError(
        f"holds no weights beside an {OPEN_CLIP_CONFIG} or {HUGGING_FACE_CONFIG}; give the folder of an export, of open_clip, "
        "or of a Hugging Face CLIPModel in one file, or the path of a state dict"
    )


def files_of(file: str, names: Collection[str]) -> tuple[str, ...]:
    """Names of the files to read for one weight file in a folder with these names: itself, then its configurations."""
    config = next((config for config, files in _PAIRS if config in names and file in files), None)
    if config is None:
        return (file,)
    if config == OPEN_CLIP_CONFIG:
        return (file, config)
    return (file, config, *[name for name in HUGGING_FACE_PREPROCESSORS if name in names][:1])


def read_weights(path: Path, allow_torchscript: bool = False) -> Weights:
    """Reads the weights of a file or a folder, and the facts that are stated about them.

    Reads .safetensors, and PyTorch files with only tensors (weights_only), at the top level or under `state_dict`, with or
    without DDP's `module.` and open_clip's `text.` prefixes, with the published keys or Hugging Face's.

    Raises:
        ValueError: there are no readable weights, or their configuration describes a CLIP that is not supported.
    """
    try:
        if path.is_dir():
            folder, names = path, choose_files([item.name for item in path.iterdir()])
        elif path.is_file():
            folder, names = path.parent, files_of(path.name, [item.name for item in path.parent.iterdir()])
        else:
            raise ValueError("there is no such file; give the path of a state dict, or of a folder that holds one")
        stated = _read_stated(folder, names[1:])
        state, activation = _read_file(folder / names[0], allow_torchscript)
        state = _published(state, names)
    except ValueError as error:
        raise ValueError(f"weights={path}: {error}") from None
    if stated is not None and activation is not None and activation != stated.activation:
        raise ValueError(
            f"weights={path}: {names[0]} says that it was trained with {activation}, but {stated.source} says "
            f"{stated.activation}; correct the one that is wrong"
        )
    return Weights(state, activation if stated is None else stated.activation, stated)


def _read_stated(folder: Path, configs: tuple[str, ...]) -> Stated | None:
    """The facts that a folder's configurations state."""
    contents = [_read_json(folder / name) for name in configs]
    if not contents:
        return None
    try:
        return stated_by_open_clip(contents[0]) if configs[0] == OPEN_CLIP_CONFIG else stated_by_hugging_face(*contents)
    except ValueError as error:
        raise ValueError(f"{configs[0]}: {error}") from None
    except (TypeError, KeyError):
        raise ValueError(f"{configs[0]}: is not the configuration of a CLIP; restore the published file") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: is not JSON ({error}); download or export it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: holds a {type(content).__name__}, not a mapping; download or export it again")
    return content


def _read_file(path: Path, allow_torchscript: bool) -> tuple[dict[str, Tensor], str | None]:
    """A state dict with the file's own keys, and the activation that our own metadata states."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), metadata["activation"] if "activation" in metadata else None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"is not a complete safetensors file ({error}); download or export it again") from None
    if _is_torchscript(path):
        return _read_torchscript(path, allow_torchscript), None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"is not a plain state dict ({first}); pickled objects are not loaded: save its state_dict, best as safetensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("holds no state dict; give a mapping of names to tensors")
    return content, None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read_torchscript(path: Path, allowed: bool) -> dict[str, Tensor]:
    """Reads the weights of an archive, as float32: OpenAI's are float16."""
    if not allowed:
        raise ValueError(
            "is a TorchScript archive, which is a program and is loaded only if that is allowed; if you trust its "
            "origin (OpenAI's published files have this format), set model.allow_torchscript=true, or give --allow-torchscript"
        )
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise ValueError(f"is not a complete TorchScript archive ({str(error).splitlines()[0]}); download it again") from None
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _published(state: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Renames to the published keys, and drops entries that are not weights."""
    plain = {key.removeprefix("module.").removeprefix("text."): value for key, value in state.items()}
    plain = {key: value for key, value in plain.items() if key not in _NO_WEIGHTS}
    if is_hugging_face(plain):
        plain = from_hugging_face(plain)
    elif HUGGING_FACE_CONFIG in names:
        raise ValueError(
            f"{names[0]} lacks the keys of a CLIPModel, which {HUGGING_FACE_CONFIG} promises; give the path of the file alone"
        )
    for scalar in ("logit_scale", "logit_bias"):  # open_clip can store them with shape (1,)
        if scalar in plain and plain[scalar].shape == (1,):
            plain[scalar] = plain[scalar].reshape(())
    return plain

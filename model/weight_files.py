"""Reads weights that others wrote: one file, or a folder with the configuration that says what the file holds.

In: a path. Out: a state dict under the published keys, with what its source states of it. Nothing is unpickled but tensors; a
TorchScript archive, as OpenAI published theirs, is a program and is loaded only where that is allowed.

What is read of a folder, the first that is there:
    open_clip_config.json    open_clip_model.safetensors, open_clip_pytorch_model.{safetensors,bin,pth}
    config.json              model.safetensors, pytorch_model.bin (Hugging Face's CLIPModel)
    open_clip_config.json    model.safetensors, pytorch_model.bin
A file under one of these names is read with the configuration beside it too; any other file stands for itself.
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
"""Numbers that OpenAI's files hold beside the weights."""


@dataclass(frozen=True)
class Weights:
    """A state dict under the published keys.

    Attributes:
        activation: what its file, or the configuration beside it, states; None where neither does.
        stated: what the configuration says; None where there is none.
    """

    state: dict[str, Tensor]
    activation: str | None
    stated: Stated | None


def choose_files(names: Collection[str]) -> tuple[str, ...]:
    """What is read of a folder that holds these names: the weights first, then what describes them.

    Raises:
        ValueError: they are not those of an export, a folder of open_clip, or one of Hugging Face.
    """
    for config, files in _PAIRS:
        for file in files:
            if config in names and file in names:
                return files_of(file, names)
    weights = sorted(name for name in names if Path(name).suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if weights and not {OPEN_CLIP_CONFIG, HUGGING_FACE_CONFIG} & set(names):
        raise ValueError(
            f"has no {OPEN_CLIP_CONFIG} or {HUGGING_FACE_CONFIG}, which says what {weights[0]} was trained with; put it back, "
            "or give the path of the file and its activation"
        )
    raise ValueError(
        f"holds no weights beside an {OPEN_CLIP_CONFIG} or {HUGGING_FACE_CONFIG}; give the folder of an export, of open_clip, "
        "or of a Hugging Face CLIPModel in one file, or the path of a state dict"
    )


def files_of(file: str, names: Collection[str]) -> tuple[str, ...]:
    """What is read for one file that lies among these names: itself, then what describes it."""
    config = next((config for config, files in _PAIRS if config in names and file in files), None)
    if config is None:
        return (file,)
    if config == OPEN_CLIP_CONFIG:
        return (file, config)
    return (file, config, *[name for name in HUGGING_FACE_PREPROCESSORS if name in names][:1])


def read_weights(path: Path, allow_torchscript: bool = False) -> Weights:
    """The weights of a file or a folder, with what is stated of them.

    Reads .safetensors, and PyTorch files of tensors alone (weights_only), bare or under `state_dict`, with or without DDP's
    `module.` and open_clip's `text.` prefixes, under the published keys or Hugging Face's.

    Raises:
        ValueError: there are no weights that can be read, or their configuration describes no CLIP as it is here.
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
            f"weights={path}: {names[0]} says that it was trained with {activation}, and {stated.source} with "
            f"{stated.activation}; correct the one that is wrong"
        )
    return Weights(state, activation if stated is None else stated.activation, stated)


def _read_stated(folder: Path, configs: tuple[str, ...]) -> Stated | None:
    """What the configurations of a folder say."""
    contents = [_read_json(folder / name) for name in configs]
    if not contents:
        return None
    try:
        return stated_by_open_clip(contents[0]) if configs[0] == OPEN_CLIP_CONFIG else stated_by_hugging_face(*contents)
    except ValueError as error:
        raise ValueError(f"{configs[0]}: {error}") from None
    except (TypeError, KeyError):
        raise ValueError(f"{configs[0]}: is no configuration of a CLIP; put back what was published with the weights") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: is no JSON ({error}); fetch or export it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: holds a {type(content).__name__}, not a mapping; fetch or export it again")
    return content


def _read_file(path: Path, allow_torchscript: bool) -> tuple[dict[str, Tensor], str | None]:
    """A state dict under the keys that it has, and the activation that our own metadata states."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), metadata["activation"] if "activation" in metadata else None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"not a whole safetensors file ({error}); fetch or export it again") from None
    if _is_torchscript(path):
        return _read_torchscript(path, allow_torchscript), None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"not a plain state dict ({first}); pickled objects are not loaded, save its state_dict alone, best as safetensors"
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
    """The weights of an archive, as float32: OpenAI's are float16."""
    if not allowed:
        raise ValueError(
            "is a TorchScript archive, a program and not a state dict, and only loaded where that is allowed; if you trust its "
            "origin (OpenAI's published files are such), set model.allow_torchscript=true, or give --allow-torchscript"
        )
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise ValueError(f"not a whole TorchScript archive ({str(error).splitlines()[0]}); fetch it again") from None
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _published(state: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The same under the published keys."""
    plain = {key.removeprefix("module.").removeprefix("text."): value for key, value in state.items()}
    plain = {key: value for key, value in plain.items() if key not in _NO_WEIGHTS}
    if is_hugging_face(plain):
        plain = from_hugging_face(plain)
    elif HUGGING_FACE_CONFIG in names:
        raise ValueError(
            f"{names[0]} has not the keys of a CLIPModel, as {HUGGING_FACE_CONFIG} says; give the path of the file alone"
        )
    for scalar in ("logit_scale", "logit_bias"):  # open_clip makes them vectors of one on request
        if scalar in plain and plain[scalar].shape == (1,):
            plain[scalar] = plain[scalar].reshape(())
    return plain

"""Reads what torch.save and TorchScript wrote, without running anything that a file names.

In: a path. Out: what was saved, with tensors on the CPU; an object of any class but tensors, containers and plain values
becomes a `Placeholder`, which keeps nothing but the name of its class. So checkpoints load that hold an argparse.Namespace or
a NumPy number beside the weights, and `weights_only` is always True.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_CLASSES = 200
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")
_FILLED = re.compile(r"Can only (SETITEMS?|APPENDS?|append|extend).*but got <class '\S*?Placeholder_(\w+)'>")
_DAMAGED = re.compile(r"corrupt|unexpected|Unsupported operand|too long", re.IGNORECASE)
_SAVE = "in the program that wrote it, save the model's state_dict, best as safetensors"
_DISTRIBUTED = "distributed.tensor"


class Placeholder:
    """Stands for an object that is not built."""

    named = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_torch(path: Path) -> Any:
    """Reads a file of torch.save.

    Raises:
        ValueError: it is damaged, or its weights are inside objects that are not built.
    """
    classes: dict[str, type] = {}
    with contextlib.suppress(Exception):  # files before zip archives: their classes are met one by one
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
            _add(name, classes)
    while True:
        try:
            stand_ins: list[Any] = [(stand_in, name) for name, stand_in in classes.items()]
            with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:  # by its path, the suffix would matter
                content, end = torch.load(file, map_location="cpu", weights_only=True), file.tell()
            break
        except Exception as error:
            if not _learn(str(error), classes):
                raise ValueError(_refusal(error, classes)) from None
    size = path.stat().st_size
    if end < size and not zipfile.is_zipfile(path):  # an archive's end is checked in model/file_formats.py
        raise ValueError(
            f"has {size - end:,} bytes behind its end, as where files were joined or something was appended; download or "
            "export it again"
        )
    return content


def _learn(message: str, classes: dict[str, type]) -> bool:
    """Adds what the message lacks to the classes that have a placeholder. Returns False if it is about something else."""
    unknown, filled = _UNKNOWN.search(message), _FILLED.search(message)
    if unknown is not None:
        return len(classes) < _MAX_CLASSES and _add(unknown.group(1), classes)
    if filled is not None:  # it is filled as a dict or a list is, so it is one
        container: type = _DictPlaceholder if filled.group(1).startswith("SET") else _ListPlaceholder
        for name, known in classes.items():
            if known.__name__ == f"Placeholder_{filled.group(2)}":
                classes[name] = container
                return True
    return False


def _add(name: str, classes: dict[str, type]) -> bool:
    """Adds a placeholder. Returns False if there is one already, or for a distributed tensor, which has its own message."""
    if name in classes or _DISTRIBUTED in name:
        return False
    stand_in = type(f"Placeholder_{len(classes)}", (Placeholder,), {"named": name})
    classes[name] = _DictPlaceholder if name == "collections.defaultdict" else stand_in
    if "." not in name:  # messages omit the module of built-in classes
        classes[f"builtins.{name}"] = stand_in
    return True


class _DictPlaceholder:
    """Becomes an empty dict, which the file then fills."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _ListPlaceholder:
    """Becomes an empty list, which the file then fills."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def _refusal(error: Exception, classes: dict[str, type]) -> str:
    message = str(error)
    blocked = _BLOCKED.search(message)
    if blocked is not None:
        return (
            f"is not a plain state dict: it calls {blocked.group(1)} when it is loaded, which no weights do; do not use this "
            "file, and tell those who gave it to you"
        )
    if "DTensor" in message or _DISTRIBUTED in message:
        return (
            "is not a plain state dict: its tensors are split over the processes of a distributed run (DTensor); save a whole "
            "one, with get_model_state_dict and StateDictOptions(full_state_dict=True)"
        )
    if "persistent_load" in message:  # of files before zip archives, which hold a module's source text
        return f"is not a plain state dict: it is a pickle of a whole module, which is not loaded; {_SAVE}"
    if "legacy .tar format" in message:
        return "is in the tar format of PyTorch before 0.4; load it with that version, and save its state_dict with a newer one"
    if classes:
        return f"is not a plain state dict: it holds pickled objects, {', '.join(sorted(classes)[:3])}; {_SAVE}"
    if isinstance(error, pickle.UnpicklingError) and not _DAMAGED.search(message):
        return f"is not a plain state dict: it holds pickled objects, which are not loaded; {_SAVE}"
    return "is not a plain state dict: it is cut or damaged; download or export it again"


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Reads the weights of an archive as float32 (OpenAI's are float16), and the activation if its program defines QuickGELU.

    Raises:
        ValueError: it is damaged.
    """
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        with zipfile.ZipFile(path) as archive:
            sources = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
            is_quick = any(b"class QuickGELU(" in archive.read(name) for name in sources)
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile):
        raise ValueError("is not a complete TorchScript archive; download it again") from None
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return floats, "quick_gelu" if is_quick else None

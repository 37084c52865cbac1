"""Chooses the files of weights in a folder, by their names.

In: paths relative to a folder. Out: those to read: the weights, or the index of their shards, then what describes them.

Files that are read from a folder, in order of precedence; each may be an index of shards (`NAME.index.json`):
    checkpoint.json          average.safetensors (the moving average, if the run keeps one), else model.safetensors
    open_clip_config.json    open_clip_model.safetensors, open_clip_pytorch_model.{safetensors,bin,pth}
    config.json              model.safetensors, pytorch_model.bin (Hugging Face's CLIPModel)
    open_clip_config.json    model.safetensors, pytorch_model.bin
    config.json              the only variant, such as model.fp16.safetensors
    no configuration         the only file of weights
    a run's folder           the newest of its checkpoints
A file with one of these names is also read with the configuration beside it; any other file is read alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from model.file_formats import INDEX_SUFFIX
from model.foreign_config import (
    CONFIGS,
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_PREPROCESSORS,
    HUGGING_FACE_VOCABULARIES,
    OPEN_CLIP_CONFIG,
)

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
HUGGING_FACE_WEIGHTS = "model.safetensors"
CHECKPOINT_RECORD = "checkpoint.json"
"""Written last into a checkpoint of our own; holds the size and sha256 of the other files."""
DESCRIPTIONS = (*CONFIGS, CHECKPOINT_RECORD)
"""Files that may belong to weights beside them."""
_CHECKPOINT_WEIGHTS = ("average.safetensors", "model.safetensors")
_OPEN_CLIPS = (OPEN_CLIP_WEIGHTS, *(f"open_clip_pytorch_model.{suffix}" for suffix in ("safetensors", "bin", "pth")))
_ANYBODYS = (HUGGING_FACE_WEIGHTS, "pytorch_model.bin")
_PAIRS = ((OPEN_CLIP_CONFIG, _OPEN_CLIPS), (HUGGING_FACE_CONFIG, _ANYBODYS), (OPEN_CLIP_CONFIG, _ANYBODYS))
_VARIANT = re.compile(r"(model\.[\w-]+\.safetensors|pytorch_model\.[\w-]+\.bin)")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_FOREIGN_SUFFIXES = (".pkl", ".pickle", ".npz", ".msgpack", ".onnx", ".gguf", ".h5", ".keras", ".pt2", ".tflite")
_NO_MODEL = re.compile(r"(training_args|optimizer|optim|scheduler|scaler|rng_state|random_states|state)([-_]?\d+)*\.\w+")
"""Files that trainers write beside the weights."""
_CHECKPOINT = re.compile(rf"(checkpoints/)?step_\d+/{re.escape(CHECKPOINT_RECORD)}")


def choose_files(paths: Collection[str]) -> tuple[str, ...]:
    """The files to read from a folder with these paths: the weights first, then what describes them.

    Raises:
        ValueError: it holds no weights, or several and nothing that says which.
    """
    names = {path for path in paths if "/" not in path}
    if CHECKPOINT_RECORD in names:
        for file in _CHECKPOINT_WEIGHTS:
            if file in names:
                return (file, CHECKPOINT_RECORD)
        raise ValueError(f"is a checkpoint without {_CHECKPOINT_WEIGHTS[1]}; restore it, or give another checkpoint")
    for config, files in _PAIRS:
        for file in files:
            for one in (file, file + INDEX_SUFFIX):
                if config in names and one in names:
                    return files_of(one, names)
    newest = max((path for path in paths if _CHECKPOINT.fullmatch(path)), key=_step, default=None)
    if newest is not None:
        folder = newest.rpartition("/")[0]
        inner = choose_files([path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")])
        return tuple(f"{folder}/{name}" for name in inner)
    return _choose_alone(paths, names)


def _step(record: str) -> int:
    return int(record.split("/")[-2].removeprefix("step_"))


def _choose_alone(paths: Collection[str], names: set[str]) -> tuple[str, ...]:
    """The only weights of a folder that no tool's names explain."""
    _refuse_other_layouts(paths, names)
    configs = {OPEN_CLIP_CONFIG, HUGGING_FACE_CONFIG} & names
    weights = sorted(name for name in names if name.endswith(_SUFFIXES) and not _NO_MODEL.fullmatch(name))
    variants = [name for name in weights if _VARIANT.fullmatch(name)]
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    shards = [name for name in weights if _SHARD.search(name)]
    foreign = [name for name in sorted(names) if name.endswith(_FOREIGN_SUFFIXES)]
    if len(foreign) == 1 and not weights and not indices:
        return (foreign[0],)  # its content tells what it is
    if shards and not indices:
        raise ValueError(f"holds {shards[0]}, one of several shards, but no {INDEX_SUFFIX} that lists them; download that too")
    whole = [*indices, *(name for name in weights if name not in shards)]
    if HUGGING_FACE_CONFIG in configs and len(variants) == 1:
        return files_of(variants[0], names)
    if configs and whole:
        raise ValueError(
            f"holds {', '.join(whole[:3])}, which {sorted(configs)[0]} beside it may not describe; give the path of one file"
        )
    if len(whole) == 1:
        return files_of(whole[0], names)
    if whole:
        raise ValueError(f"holds several files of weights, {', '.join(whole[:4])}; give the path of one of them")
    inner = _folders_with_weights(paths)
    give = (
        "give the folder of an export, of a checkpoint or a run, of open_clip, or of a Hugging Face CLIPModel, or the path of "
        "a state dict"
    )
    if inner:
        give = f"give the folder {' or '.join(inner[-3:])} in it, which does"
    raise ValueError(f"holds no weights beside an {OPEN_CLIP_CONFIG} or {HUGGING_FACE_CONFIG}; {give}")


def _refuse_other_layouts(paths: Collection[str], names: set[str]) -> None:
    """Raises ValueError for folders of other tools, whose files are no state dicts."""
    if any(path.endswith(".distcp") for path in paths):
        raise ValueError(
            "is a distributed checkpoint of PyTorch; make a file of it: python -m torch"
            ".distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE, where FOLDER is the one with the .distcp files"
        )
    if "zero_to_fp32.py" in names or any("zero_pp_rank" in path for path in paths):
        raise ValueError("is a checkpoint of DeepSpeed; make a file of it: python zero_to_fp32.py . FOLDER, in this folder")
    if any(PurePosixPath(path).name == "data.pkl" for path in paths):
        raise ValueError(
            "is an unpacked file of torch.save; pack it again, with its outer folder: python -m zipfile -c w.pt FOLDER, or "
            "download it with a program that does not unpack it"
        )
    foreign = ("saved_model.pb", "checkpoint")
    weights = any(name.endswith((*_SUFFIXES, INDEX_SUFFIX)) for name in names)
    found = [name for name in names if name in foreign or name.endswith((".ckpt.index", ".mlpackage"))]
    if found and not weights:
        raise ValueError(f"holds {min(found)}, weights of another framework, and none of PyTorch; convert them with its tools")


def _folders_with_weights(paths: Collection[str]) -> list[str]:
    """Folders inside that hold files of weights."""
    nested = [PurePosixPath(path) for path in paths if "/" in path and path.endswith((*_SUFFIXES, INDEX_SUFFIX))]
    return sorted({str(path.parent) for path in nested if not _NO_MODEL.fullmatch(path.name)})


def files_of(file: str, names: Collection[str]) -> tuple[str, ...]:
    """The files to read for one weight file in a folder with these names: itself, then what describes it.

    Raises:
        ValueError: it is one of several shards.
    """
    shard = _SHARD.search(file)
    if shard is not None and int(shard.group(2)) > 1:
        raise ValueError(
            f"is shard {int(shard.group(1))} of {int(shard.group(2))}; give the folder, or its {INDEX_SUFFIX} file"
        )
    if CHECKPOINT_RECORD in names and file in (*_CHECKPOINT_WEIGHTS, "state.safetensors"):
        return (file, CHECKPOINT_RECORD)
    plain = file.removesuffix(INDEX_SUFFIX)
    config = next((config for config, files in _PAIRS if config in names and plain in files), None)
    if config is None and HUGGING_FACE_CONFIG in names and _VARIANT.fullmatch(plain):
        config = HUGGING_FACE_CONFIG
    if config is None:
        return (file,)
    if config == OPEN_CLIP_CONFIG:
        return (file, config)
    return (file, config, *[name for name in (*HUGGING_FACE_PREPROCESSORS, *HUGGING_FACE_VOCABULARIES) if name in names])


def shards_of(index: Path) -> dict[str, Sequence[str]]:
    """Shard -> names of the tensors in it, from an index of Hugging Face's.

    Raises:
        ValueError: it is damaged.
    """
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for key, shard in weight_map.items():
            if not isinstance(shard, str) or shard != PurePosixPath(shard).name or "\\" in shard:
                raise ValueError(f"{index.name} names the shard {shard!r}, which is no file beside it; download it again")
            shards.setdefault(shard, []).append(key)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise ValueError(f"{index.name} is not an index of shards; download it again") from None
    if not shards:
        raise ValueError(f"{index.name} names no shards; download it again")
    return dict(sorted(shards.items()))

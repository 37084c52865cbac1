"""Weights of a tiny CLIP, and ways in which people store them."""

import io
import json
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from model.clip import CLIP
from model.config import Architecture
from model.foreign_config import hugging_face_config
from model.state_dict_keys import to_hugging_face
from tests.support.models import randomise

TINY = Architecture("tiny", 16, 16, 2, 64, 8, 2, 64, 1, activation="gelu", context_length=8, vocab_size=32)
TEXT = ("transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection")


def make(seed: int) -> dict[str, Tensor]:
    clip = CLIP(TINY)
    randomise(clip, seed)
    return clip.state_dict()


STATE, OTHER = make(1), make(2)


def prefixed(prefix: str, state=STATE) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def hugging_face(prefix: str = "") -> dict[str, Tensor]:
    return prefixed(prefix, {key: value.contiguous() for key, value in to_hugging_face(STATE).items()})


def as_open_clips_custom_text(state=STATE) -> dict[str, Tensor]:
    return {("text." if key.startswith(TEXT) else "") + key: value for key, value in state.items()}


def optimizer() -> dict:
    moments = {index: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)} for index in range(3)}
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2]}]}


def named_moments() -> dict:
    return {"exp_avg": OTHER, "exp_avg_sq": OTHER}


def same(one, other=STATE) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def saved(content=STATE, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def as_safetensors(state=STATE, metadata=None) -> bytes:
    return save(state, metadata)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605247071\n"


def write_hugging_face(folder: Path, shards: int = 1, safe: bool = True, **config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hugging_face_config(TINY) | config))
    state = hugging_face()
    base, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    names = [f"{base}.{suffix}"] if shards == 1 else [f"{base}-{n + 1:05}-of-{shards:05}.{suffix}" for n in range(shards)]
    keys = sorted(state)
    weight_map = {}
    for number, name in enumerate(names):
        part = {key: state[key] for key in keys[number::shards]}
        save_file(part, folder / name, {"format": "pt"}) if safe else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / f"{base}.{suffix}.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        )


def assert_our_own_words(message: str, path: Path) -> None:
    assert message.startswith(f"weights={path}: ")
    assert not [
        word for word in ("weights_only", "add_safe_globals", "arbitrary code", "pytorch.org", "Traceback") if word in message
    ]
    assert "\n" not in message

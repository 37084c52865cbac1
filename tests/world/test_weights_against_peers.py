"""Weights in random wrappings, saved by torch, safetensors, open_clip, transformers and torch.compile, loaded here and there.

The features of what we load are those of the model that saved it. A file that was cut anywhere is refused.
"""

import argparse
import functools
import json
import random
import string
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.clip import CLIP
from model.config import ARCHITECTURES, Architecture
from model.foreign_config import hugging_face_config, open_clip_config
from model.weight_files import read_weights
from model.weights import load_state
from tests.support.models import blobs, randomise

VIT = Architecture("tiny-vit", 16, 16, 1, 64, 8, 1, 64, 1, context_length=8, vocab_size=32)
RESNET = Architecture("tiny-rn", 64, 32, (1, 1, 1, 1), 16, None, 1, 64, 1, context_length=8, vocab_size=32)
ROWS = {row.name: row for row in (VIT, replace(VIT, name="tiny-gelu", activation="gelu"), RESNET)}
TOKENS = torch.tensor([[1, 5, 31, 0, 0, 0, 0, 0], [1, 9, 3, 7, 31, 0, 0, 0]])  # 31, the largest, ends a text
PREFIXES = ("module.", "_orig_mod.", "model.", "clip.", "net.", "_fsdp_wrapped_module.", "_forward_module.", "encoder.", "x.")
KEYS = ("state_dict", "model_state_dict", "model", "module", "state", "ema", "model_ema", "checkpoint", "weights", "clip")
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Peer:
    """A model of a peer.

    Attributes:
        state: its state dict, under its own names.
        published: the same under the published names.
        image, text: its normalised features of the images and captions that all see.
        has_folder: True if it writes folders that state its activation.
    """

    name: str
    row: Architecture
    state: dict[str, Tensor]
    published: dict[str, Tensor]
    image: Tensor
    text: Tensor


def images(row: Architecture) -> Tensor:
    return blobs(row.image_size_px)


@torch.no_grad()
def open_clip_model(row: Architecture, is_custom: bool, published: dict[str, Tensor]) -> nn.Module:
    import open_clip.model as peer

    config = open_clip_config(row)["model_cfg"]
    kind = peer.CustomTextCLIP if is_custom else peer.CLIP
    model = kind(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=config["quick_gelu"]).eval()
    state = peer.convert_to_custom_text_state_dict(published) if is_custom else published
    model.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True)
    return model


def hugging_face_model(row: Architecture, published: dict[str, Tensor]) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    from model.state_dict_keys import to_hugging_face

    config = CLIPConfig(**hugging_face_config(row))
    config.text_config.eos_token_id, config.text_config.bos_token_id, config.text_config.pad_token_id = 31, 1, 0
    model = CLIPModel(config).eval()
    model.load_state_dict(to_hugging_face(published))
    return model


@torch.no_grad()
@functools.cache
def peer_of(name: str, row_name: str, dtype: torch.dtype) -> Peer:
    """A peer's model with weights that are exact in a dtype, computed with in float32."""
    row = ROWS[row_name]
    clip = CLIP(row)
    randomise(clip, seed=len(name) + len(row_name))
    published = {
        key: value.to(dtype).float() if value.is_floating_point() else value for key, value in clip.state_dict().items()
    }
    if name == "transformers":
        model = hugging_face_model(row, published)
        outputs = model(input_ids=TOKENS, pixel_values=images(row))
        image, text = outputs.image_embeds, outputs.text_embeds
    else:
        model = open_clip_model(row, name == "custom", published)
        image, text = model.encode_image(images(row), normalize=True), model.encode_text(TOKENS, normalize=True)
    saved = torch.compile(model) if name == "compiled" else model
    state = {
        key: value.to(dtype) if value.is_floating_point() and value.ndim else value for key, value in saved.state_dict().items()
    }
    return Peer(name, row, state, published, image, text)


def beside(rng: random.Random, state: dict[str, Tensor]) -> dict:
    """Values that trainers store beside weights; some have the names of weights."""
    moments = {key: value + 1 for key, value in list(state.items())[:5]}
    everything = {
        "epoch": rng.randrange(100),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "optimizer_state_dict": {"exp_avg": moments, "exp_avg_sq": moments},
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "args": argparse.Namespace(lr=0.1, folder=Path("/tmp"), names=["a"]),
        "best_acc": np.float64(0.5),
        "history": np.ones(3),
        "rng_state": torch.get_rng_state(),
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"width": 64, "kind": None},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    }
    return {key: everything[key] for key in rng.sample(sorted(everything), rng.randrange(4))}


def wrapped(rng: random.Random, state: dict[str, Tensor]):
    """The state dict inside random prefixes and containers."""
    content = state
    for _ in range(rng.randrange(3)):
        prefix = rng.choice((*PREFIXES, "".join(rng.choices(string.ascii_lowercase, k=4)) + "_net."))
        content = {prefix + key: value for key, value in content.items()}
    if rng.random() < 0.2:
        content = content | {"loss.temperature_buffer": torch.ones(1), "metrics.count": torch.tensor(3)}
    for _ in range(rng.randrange(3)):
        kind = rng.random()
        key = rng.choice(KEYS)
        if kind < 0.8:
            content = {name: value for name, value in beside(rng, state).items() if name != key} | {key: content}
        elif kind < 0.9:
            content = [content, rng.randrange(9)]
        else:
            content = (content, {"epoch": 1})
    return content


def is_plain(content) -> bool:
    return isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())


def write(rng: random.Random, peer: Peer, folder: Path) -> Path:
    """Saves a peer's weights in a random way. Returns what is to be read."""
    folder.mkdir()
    state = {key: value.clone() for key, value in peer.state.items()}
    if rng.random() < 0.25:
        return write_folder(rng, peer, state, folder)
    content = wrapped(rng, state)
    path = folder / f"w{rng.choice(('', '.pt', '.bin', '.ckpt', '.safetensors', '.pth', '.model'))}"
    if is_plain(content) and rng.random() < 0.5:
        save_file({key: value.contiguous() for key, value in content.items()}, path, rng.choice((None, {"format": "pt"})))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    return path


def write_folder(rng: random.Random, peer: Peer, state: dict[str, Tensor], folder: Path) -> Path:
    """A folder with a configuration, or without one."""
    if peer.name == "transformers":
        (folder / "config.json").write_text(json.dumps(hugging_face_config(peer.row)))
        base = rng.choice(("model.safetensors", "pytorch_model.bin"))
    else:
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(peer.row)))
        base = rng.choice(("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors"))
    number = rng.choice((1, 1, 2, 3))
    stem, _, suffix = base.partition(".")
    names = [base] if number == 1 else [f"{stem}-{n + 1:05}-of-{number:05}.{suffix}" for n in range(number)]
    keys = list(state)
    rng.shuffle(keys)
    weight_map = {}
    for index, name in enumerate(names):
        part = {key: state[key].contiguous() for key in keys[index::number]}
        save_file(part, folder / name) if name.endswith("safetensors") else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if number > 1:
        (folder / f"{base}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@torch.no_grad()
def check(rng: random.Random, folder: Path, ours: dict[str, CLIP]) -> None:
    row_name = rng.choices(sorted(ROWS), (45, 10, 45))[0]  # a ResNet has three times as many tensors, and takes as long
    name = rng.choice(("open_clip", "custom", "compiled", *(("transformers",) * (row_name != RESNET.name))))
    peer = peer_of(name, row_name, rng.choice((torch.float32, torch.float16, torch.bfloat16)))
    path = write(rng, peer, folder)
    weights = read_weights(path)
    if path.is_dir():
        assert weights.activation == peer.row.activation
    clip = ours[row_name]
    load_state(clip, weights.state, str(path))
    state = clip.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in peer.published.items())
    assert float((clip.encode_image(images(peer.row), normalize=True) - peer.image).abs().max()) < TOLERANCE
    assert float((clip.encode_text(TOKENS, normalize=True) - peer.text).abs().max()) < TOLERANCE


def check_cut(rng: random.Random, folder: Path) -> None:
    peer = peer_of("open_clip", VIT.name, torch.float32)
    folder.mkdir()
    path = folder / f"w{rng.choice(('.pt', '.safetensors', ''))}"
    kind = rng.randrange(3)
    save_file(peer.state, path) if kind == 0 else torch.save(
        {"model": peer.state}, path, _use_new_zipfile_serialization=kind == 1
    )
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])
    with pytest.raises(ValueError, match=r"^weights=") as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)


def compare(seed: int, number: int, folder: Path) -> None:
    ours = {name: CLIP(row).eval() for name, row in ROWS.items()}
    for index in range(number):
        rng = random.Random(f"{seed}/{index}")
        inner = folder / str(index % 50)
        for old in inner.glob("*") if inner.exists() else ():
            old.unlink()
        if inner.exists():
            inner.rmdir()
        try:
            check_cut(rng, inner) if rng.random() < 0.15 else check(rng, inner, ours)
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {index}: {error}") from error


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_random_weights_have_the_features_of_the_model_that_saved_them(tmp_path):
    compare(0, 150, tmp_path)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_weights_have_the_features_of_the_model_that_saved_them(seed, tmp_path):
    compare(seed, 20_000, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_open_clip_and_transformers_load_the_same_file_to_the_same_features(seed, tmp_path, monkeypatch):
    from open_clip.factory import load_checkpoint
    from transformers import CLIPModel

    rng = random.Random(seed)
    peer = peer_of("open_clip", VIT.name, torch.float16)
    monkeypatch.setitem(ARCHITECTURES, VIT.name, VIT)
    path = tmp_path / "epoch_1.pt"
    content = {"epoch": 1, "name": "run", "state_dict": {f"module.{key}": value for key, value in peer.state.items()}}
    torch.save(content | beside(rng, peer.state), path)
    theirs = open_clip_model(VIT, bool(seed % 2), {key: value + 1 for key, value in peer.published.items()})
    load_checkpoint(theirs, str(path), weights_only=False)
    assert torch.equal(theirs.encode_image(images(VIT), normalize=True), peer.image)
    clip = CLIP(VIT).eval()
    load_state(clip, read_weights(path).state, "theirs")
    assert float((clip.encode_image(images(VIT), normalize=True) - peer.image).abs().max()) < TOLERANCE

    model = hugging_face_model(VIT, peer.published)
    model.save_pretrained(tmp_path / "hub", max_shard_size=rng.choice(("100KB", "1GB")))
    back = CLIPModel.from_pretrained(tmp_path / "hub").eval()
    features = back(input_ids=TOKENS, pixel_values=images(VIT))
    weights = read_weights(tmp_path / "hub")
    load_state(clip, weights.state, "theirs")
    assert weights.activation == "quick_gelu"
    assert float((clip.encode_image(images(VIT), normalize=True) - features.image_embeds).abs().max()) < TOLERANCE
    assert float((clip.encode_text(TOKENS, normalize=True) - features.text_embeds).abs().max()) < TOLERANCE

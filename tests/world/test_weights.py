"""Weights as people have them: wrapped, renamed, cut, mistaken for others. What is a CLIP loads; the rest is named for what it is.

Each file is written here. A refusal states what the file is and what to do, in our own words, never in PyTorch's.
"""

import argparse
import collections
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.clip import CLIP
from model.config import ARCHITECTURES, Architecture
from model.foreign_config import hugging_face_config, open_clip_config
from model.state_dict_keys import to_hugging_face
from model.weight_files import read_weights
from model.weights import load_clip, weights_metadata
from tests.support.models import randomise

TINY = Architecture("tiny", 16, 16, 2, 64, 8, 2, 64, 1, activation="gelu", context_length=8, vocab_size=32)
TEXT = ("transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection")


@pytest.fixture(autouse=True)
def _a_tiny_architecture(monkeypatch):
    """A model of 0.3 MB: the vocabulary of the others alone has 12."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


def make(seed: int) -> dict[str, torch.Tensor]:
    clip = CLIP(TINY)
    randomise(clip, seed)
    return clip.state_dict()


STATE, OTHER = make(1), make(2)


def prefixed(prefix: str, state=STATE) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def hugging_face(prefix: str = "") -> dict[str, torch.Tensor]:
    return prefixed(prefix, {key: value.contiguous() for key, value in to_hugging_face(STATE).items()})


def as_open_clips_custom_text(state=STATE) -> dict[str, torch.Tensor]:
    return {("text." if key.startswith(TEXT) else "") + key: value for key, value in state.items()}


def checkpointed() -> dict[str, torch.Tensor]:
    """Keys of activation checkpointing inside FSDP, as they stand when the hooks that clean them did not run."""
    return {
        "_fsdp_wrapped_module." + key.replace("resblocks.0.", "resblocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): value
        for key, value in STATE.items()
    }


def optimizer() -> dict:
    moments = {index: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)} for index in range(3)}
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2]}]}


def named_moments() -> dict:
    return {"exp_avg": OTHER, "exp_avg_sq": OTHER}


def flipped(state) -> dict[str, torch.Tensor]:
    return {key: value + 1 for key, value in state.items()}


def nested(state) -> dict:
    """A dict of dicts, a level for each part of a name."""
    tree: dict = {}
    for key, value in state.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def same(one, other=STATE) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


WRAPPED = {
    "plain": STATE,
    "torch.compile's prefix": prefixed("_orig_mod."),
    "Lightning's prefix": {"state_dict": prefixed("model."), "epoch": 3, "pytorch-lightning_version": "2.5", "loops": {"fit": {}}},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": optimizer(), "epoch": 4, "loss": 0.5},
    "open_clip's own checkpoint": {"epoch": 1, "name": "run", "state_dict": prefixed("module."), "optimizer": optimizer()},
    "DDP around compile": prefixed("module._orig_mod."),
    "compile around DDP": prefixed("_orig_mod.module."),
    "compile of one encoder": {key.replace("visual.", "visual._orig_mod.", 1): value for key, value in STATE.items()},
    "model": {"model": STATE, "args": None},
    "module of DeepSpeed": {"module": prefixed("module."), "param_shapes": [], "ds_version": "0.14", "optimizer": None},
    "state": {"state": STATE, "step": 7},
    "net": {"net": prefixed("net.")},
    "a name that nobody knows": {"my_best_clip": STATE},
    "three deep": {"checkpoint": {"model": {"state_dict": prefixed("module.clip.")}}, "step": 1},
    "a list": [STATE, {"epoch": 3}],
    "a tuple": (STATE, 3, "clip"),
    "a list in a dict": {"models": [STATE]},
    "any prefix": prefixed("backbone.encoder.clip_model."),
    "a prefix of two known words": prefixed("model.clip."),
    "a dict for each encoder": {
        "visual": {key.removeprefix("visual."): value for key, value in STATE.items() if key.startswith("visual.")},
        **{key: value for key, value in STATE.items() if not key.startswith("visual.")},
    },
    "a dict for each module": nested(STATE),
    "open_clip's text module": as_open_clips_custom_text(),
    "open_clip's text module in DDP": {"state_dict": prefixed("module.", as_open_clips_custom_text())},
    "Hugging Face's keys in Lightning": {"state_dict": hugging_face("model.clip.")},
    "Hugging Face's keys in DDP": hugging_face("module."),
    "FSDP and activation checkpointing [litgpt 1613]": {"model": checkpointed()},
    "losses beside": STATE | {"loss.labels": torch.arange(4), "criterion.margin": torch.tensor(0.1)},
    "Lightning with losses and metrics": {
        "state_dict": prefixed("model.") | {"loss_fn.t": torch.ones(1), "val_accuracy.total": torch.tensor(3), "metrics.x": torch.ones(2)}
    },
    "torch's AveragedModel": {"n_averaged": torch.tensor(5)} | prefixed("module."),
    "a moving average alone": {"ema": {"decay": 0.999, "shadow": STATE}},
    "the causal mask beside": STATE | {"attn_mask": torch.full((8, 8), float("-inf")).triu(1)},
    "an optimizer with names of weights": {"model": STATE, "optimizer": named_moments()},
    "momenta with names of weights": {"weights": STATE, "momentum_buffer": OTHER, "grads": OTHER},
    "parameters, not tensors": {key: torch.nn.Parameter(value) for key, value in STATE.items()},
    "scalars of one element": STATE | {"logit_scale": STATE["logit_scale"].reshape(1)},
    "the same tensors under two names": prefixed("module.") | STATE,
    "weights that share memory": STATE | {"transformer.resblocks.1.ln_1.weight": STATE["transformer.resblocks.0.ln_1.weight"]},
    "a view with other strides": {key: value.T.contiguous().T if value.ndim == 2 else value for key, value in STATE.items()},
    "a NumPy number beside [negbench 9]": {"state_dict": STATE, "best": np.float64(0.5), "curve": np.ones(3)},
    "a Namespace beside [mlperf-automations 465]": {"state_dict": STATE, "args": argparse.Namespace(lr=1e-3, path=Path("/x"))},
    "a defaultdict around": collections.defaultdict(dict, {"state_dict": STATE, "history": collections.defaultdict(list, a=[1])}),
}  # fmt: skip
EXPECTED = {
    "weights that share memory": WRAPPED["weights that share memory"],
}
"""Contents that are not STATE."""


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_clip_is_found_in_whatever_wraps_it(name, zipped, tmp_path):
    torch.save(WRAPPED[name], tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / "w.pt")
    assert same(weights.state, EXPECTED.get(name, STATE))
    assert not any(value.requires_grad for value in weights.state.values())
    loaded, _, _ = load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert same(loaded.state_dict(), EXPECTED.get(name, STATE))


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        ({"model": OTHER, "model_ema": STATE, "optimizer": optimizer()}, "`model_ema`"),
        ({"state_dict": prefixed("module.", OTHER), "state_dict_ema": STATE}, "`state_dict_ema`"),
        ({"model": OTHER, "ema": {"module": STATE, "updates": 3}}, "`ema`"),
        (prefixed("model.", OTHER) | prefixed("ema_model.") | {"step": torch.tensor(3), "initted": torch.tensor(True)}, "`ema_model`"),
        ({"state_dict": prefixed("net.", OTHER) | prefixed("net_ema.module.")}, "`state_dict.net_ema`"),
        ({"student": OTHER, "swa_model": {"n_averaged": torch.tensor(2), **prefixed("module.")}}, "`swa_model`"),
        ([OTHER, {"averaged": STATE}], "`1.averaged`"),
    ],
)  # fmt: skip
def test_of_a_model_and_its_moving_average_the_average_is_loaded_and_that_is_said(content, chosen, tmp_path, caplog):
    torch.save(content, tmp_path / "w.pt")
    loaded, _, _ = load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert same(loaded.state_dict())
    assert f"the moving average, {chosen}, is loaded" in caplog.text


def test_what_lies_beside_the_weights_is_said_to_be_ignored(tmp_path, caplog):
    content = {"state_dict": prefixed("model.") | {"loss.labels": torch.arange(4)}, "epoch": 3, "optimizer_states": [optimizer()]}
    torch.save(content, tmp_path / "w.ckpt")
    load_clip("tiny", tmp_path / "w.ckpt", activation="gelu")
    assert "ignores what it holds beside the weights: " in caplog.text
    assert all(name in caplog.text for name in ("state_dict.loss.labels", "epoch", "optimizer_states"))


REFUSED_CONTENTS = {
    "two models": ({"a": STATE, "b": OTHER}, "holds 2 CLIPs, `a` and `b`, and does not say which one to use"),
    "student and teacher [train-CLIP-FT 10]": (
        {"state_dict": prefixed("model.") | prefixed("teacher.", OTHER) | {"sink_temp": torch.ones(1)}},
        r"holds 2 CLIPs, `state_dict\.model` and `state_dict\.teacher`",
    ),
    "two averages": ({"model": STATE, "ema_0.99": STATE, "ema_0.999": OTHER}, "holds 3 CLIPs"),
    "two values of one weight": (
        STATE | {"module.visual.proj": OTHER["visual.proj"]},
        r"holds both visual\.proj and module\.visual\.proj, which differ",
    ),
    "two text encoders": (STATE | as_open_clips_custom_text(OTHER), "holds both .* which differ"),
    "prompts beside the model [EventBind 4]": (
        prefixed("module.prompt_learner.clip_model.") | {"module.prompt_learner.ctx": torch.ones(2)},
        r"holds module\.prompt_learner\.ctx beside `prompt_learner\.clip_model`, which is none of a CLIP's weights; save",
    ),
    "a head on top": (STATE | {"head.weight": torch.ones(2, 16)}, r"holds head\.weight beside"),
    "a module": (torch.nn.Linear(2, 2), r"it is a pickle of a whole (torch\.nn\.modules\.linear\.Linear|module).*, which is not loaded"),
    "a module in a dict": ({"model": torch.nn.Linear(2, 2), "epoch": 1}, r"is not a plain state dict.* pickle.*, which is not loaded; .*state.dict"),
    "NumPy arrays": ({key: value.numpy() for key, value in STATE.items()}, "is not a plain state dict"),
    "a single tensor": (torch.ones(3), "holds a single tensor, no state dict"),
    "nothing": ({}, "holds no state dict; give a mapping"),
    "an optimizer alone": (optimizer(), "holds the state of an optimizer, no weights; give the file of the model's weights"),
    "an optimizer in a dict": ({"optimizer": optimizer()}, "holds the state of an optimizer, no weights"),
    "moments with the names of weights": (named_moments(), "holds the state of an optimizer, no weights"),
    "a BERT": (
        {"bert.embeddings.word_embeddings.weight": torch.ones(2, 2), "bert.encoder.layer.0.attention.self.query.weight": torch.ones(2)},
        "holds a BERT or a model like it; only the CLIPs",
    ),
    "torchvision's ResNet-50": (
        {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1), "fc.weight": torch.ones(1000, 2048)},
        "holds a ResNet of torchvision or timm",
    ),
    "Hugging Face's SigLIP": (
        hugging_face() | {"vision_model.head.probe": torch.ones(1), "text_model.head.weight": torch.ones(1)},
        "holds a SigLIP; only the CLIPs",
    ),
    "open_clip's SigLIP": (
        {"visual.trunk.attn_pool.latent": torch.ones(1), "text.token_embedding.weight": torch.ones(2, 2), "logit_bias": torch.ones(1)},
        "holds a SigLIP",
    ),
    "a timm tower": (
        {"visual.trunk.stem.0.weight": torch.ones(1), "text.token_embedding.weight": torch.ones(2, 2)},
        "holds a CLIP with an image encoder of timm",
    ),
    "CoCa": (STATE | {"text_decoder.resblocks.0.ln_1.weight": torch.ones(1)}, "holds a CoCa"),
    "an image encoder": (
        {key: value for key, value in STATE.items() if key.startswith("visual.")},
        "holds a CLIP's image encoder alone; both encoders are needed",
    ),
    "a text encoder": ({key: value for key, value in STATE.items() if not key.startswith("visual.")}, "holds a CLIP's text encoder alone"),
    "Hugging Face's image encoder": (
        {key: value for key, value in hugging_face().items() if key.startswith("vision")},
        "holds a CLIP's image encoder alone",
    ),
    "a LoRA": ({"base_model.model.visual.proj.lora_A.weight": torch.ones(2)}, r"holds a LoRA .*merge_and_unload\(\)"),
    "a LoRA around a model": (
        STATE | {"visual.transformer.resblocks.0.mlp.c_fc.lora_B.default.weight": torch.ones(2)}, "holds a LoRA",
    ),
    "bitsandbytes": (STATE | {"visual.transformer.resblocks.0.mlp.c_fc.weight.SCB": torch.ones(2)}, "holds quantised weights"),
    "FSDP's flat parameters [dinov2 544]": (
        {"_fsdp_wrapped_module._flat_param": torch.ones(9), "_fsdp_wrapped_module.visual._fsdp_wrapped_module._flat_param": torch.ones(9)},
        "holds the flat parameters of FSDP; save a whole state dict",
    ),
    "geometric parametrisation [CLIP-fine-tune 11]": (
        {key.replace("mlp.c_fc.weight", "mlp.c_fc.r"): value for key, value in STATE.items()}
        | {"transformer.resblocks.0.mlp.c_fc.theta": torch.ones(2)},
        "holds weights that are parametrised again",
    ),
    "int8": (STATE | {"visual.proj": STATE["visual.proj"].to(torch.int8)}, r"visual\.proj is int8; weights are float32"),
    "complex": (STATE | {"visual.proj": STATE["visual.proj"].to(torch.complex64)}, r"visual\.proj is complex64"),
    "fp8": (STATE | {"text_projection": STATE["text_projection"].to(torch.float8_e4m3fn)}, r"text_projection is float8_e4m3fn"),
    "quantised tensors": (
        STATE | {"visual.proj": torch.quantize_per_tensor(STATE["visual.proj"], 0.1, 0, torch.qint8)}, r"visual\.proj is qint8",
    ),
    "sparse tensors": (STATE | {"visual.proj": STATE["visual.proj"].to_sparse()}, r"visual\.proj is sparse"),
    "meta tensors": (STATE | {"visual.proj": STATE["visual.proj"].to("meta")}, r"visual\.proj is on the meta device"),
    "NaN": (STATE | {"visual.proj": STATE["visual.proj"] * float("nan")}, r"NaN or infinite in visual\.proj \(1,024\); the run diverged"),
    "infinite": (STATE | {"logit_scale": torch.tensor(float("inf"))}, r"NaN or infinite in logit_scale \(1\)"),
    "the temperature's factor [transformers 13436]": (STATE | {"logit_scale": torch.tensor(100.0)}, "logit_scale is 100, but it is the log"),
    "a bidirectional mask": (STATE | {"attn_mask": torch.zeros(8, 8)}, "attn_mask is not the causal mask"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED_CONTENTS)
def test_what_is_no_clip_is_named_and_refused(name, tmp_path):
    content, message = REFUSED_CONTENTS[name]
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert_our_own_words(str(caught.value), tmp_path / "w.pt")


def assert_our_own_words(message: str, path: Path) -> None:
    assert message.startswith(f"weights={path}: ")
    assert not [word for word in ("weights_only", "add_safe_globals", "arbitrary code", "pytorch.org", "Traceback") if word in message]
    assert "\n" not in message


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return file.getvalue()


def saved(content=STATE, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def as_safetensors(state=STATE, metadata=None, folder=Path("/tmp")) -> bytes:
    from safetensors.torch import save

    return save(state, metadata)


def tar_of(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("w.pt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3), b=np.ones(2))
    return file.getvalue()


def damaged(data: bytes, marker: bytes) -> bytes:
    """One bit of the tensor that begins with a marker is another."""
    at = data.index(marker) + 5
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605247071\n"
PROJ = STATE["visual.proj"].numpy().tobytes()[:64]
REFUSED_BYTES = {
    "a Git LFS pointer [transformers 8497]": (POINTER, r"is a Git LFS pointer, .*git lfs pull --include=w\."),
    "a Git LFS pointer with CRLF": (POINTER.replace(b"\n", b"\r\n"), "is a Git LFS pointer"),
    "an HTML page [transformers 8497]": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML page"),
    "an HTML page with a BOM": (b"\xef\xbb\xbf<html lang='de'>", "is an HTML page"),
    "S3's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML document"),
    "a hub's error": (b"Entry not found", "text that begins with 'Entry not found'"),
    "a JSON error": (b'{"error":"Repository not found"}', "is JSON, no weights"),
    "a configuration": (json.dumps(hugging_face_config(TINY)).encode(), "is a configuration, no weights; give the folder"),
    "an empty file": (b"", "is empty"),
    "a safetensors file cut in its data": (as_safetensors()[:-100], r"is not a complete safetensors file \(it has [\d,]+ of at least"),
    "a safetensors file cut in its header": (as_safetensors()[:100], r"is not a complete safetensors file \(it has 100 of"),
    "a safetensors file with bytes after it": (as_safetensors() + b"0" * 9, "is not a safetensors file as written: it has"),
    "a safetensors file of zeros": (b"\x00" * 4096, "begins with the bytes 00 00"),
    "a zip cut [yolov10 154]": (saved()[:-300], "is not a plain state dict: the end of its zip archive is missing"),
    "a legacy file cut": (saved(_use_new_zipfile_serialization=False)[:-300], "is not a plain state dict: it is cut or damaged"),
    "a zip with a damaged tensor": (damaged(saved(), PROJ), "is not a plain state dict: its zip archive is damaged"),
    "a zip of other files": (zip_of(readme__txt=b"x"), "is a zip archive of 1 files, such as readme.txt, and none of PyTorch's; unpack"),
    "an empty zip": (zip_of(), "is an empty zip archive"),
    "a zip around a file": (zip_of(w__pt=saved()), r"is a zip archive of 1 files, such as w\.pt.*unpack"),
    "a gzip": (gzip.compress(saved()), "is a gzip file; unpack it"),
    "a tar": (tar_of(saved()), "is a tar archive; unpack it"),
    "a NumPy archive": (npz(), r"is a NumPy archive \(\.npz\) of 2 arrays"),
    "a pickle of Python": (pickle.dumps({"a": [1, 2]}), "it is a pickle that torch.save did not write"),
    "a pickle of Python, protocol 2": (pickle.dumps(STATE["logit_scale"], protocol=2), "it is a pickle that torch.save did not write"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\x00" * 60, "is an HDF5 file"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 10, 10), "is a GGUF file"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x80\x01", "is an ONNX model"),
    "msgpack": (b"\x82\xa6params\x81\xa6kernel\xc4\x01\x00", "is a msgpack file, as flax writes"),
    "the index of a TensorFlow checkpoint": (b"\x00\x01\x02" * 30 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "is the index of a TensorFlow"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "is a PNG image"),
    "noise": (bytes(range(128, 256)) * 4, "is in none of the formats|is not a complete safetensors"),
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin"])
@pytest.mark.parametrize("name", REFUSED_BYTES)
def test_a_file_that_holds_no_weights_is_named_for_what_it_is(name, suffix, tmp_path):
    data, message = REFUSED_BYTES[name]
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert_our_own_words(str(caught.value), path)


@pytest.mark.parametrize("name", ["w", "w.bin", "w.pt", "w.safetensors", "w.ckpt", "weights.txt", "w.SAFETENSORS"])
@pytest.mark.parametrize("data", [as_safetensors(), saved(), saved(_use_new_zipfile_serialization=False)], ids=["safe", "zip", "old"])
def test_the_name_of_a_file_does_not_matter(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert same(read_weights(tmp_path / name).state)


def test_an_archive_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_weights(tmp_path / "w.pt").state)


class Harmful:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_file_names_is_called(zipped, tmp_path):
    import os

    trace = tmp_path / "trace"
    for call in (Harmful(os.system, f"touch {trace}"), Harmful(eval, f"open({str(trace)!r}, 'w')"), Harmful(Path.touch, trace)):
        torch.save({"state_dict": STATE, "extra": call}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        try:
            assert same(read_weights(tmp_path / "w.pt").state)
        except ValueError as error:
            assert_our_own_words(str(error), tmp_path / "w.pt")
            assert "is not a plain state dict" in str(error)
            assert call.call is not os.system or "calls posix.system when it is loaded" in str(error)
        assert not trace.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_have_their_values(dtype, tmp_path):
    torch.save({key: value.to(dtype) for key, value in STATE.items()}, tmp_path / "w.pt")
    loaded, _, _ = load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert same(loaded.state_dict(), {key: value.to(dtype).float() for key, value in STATE.items()})


# ---- folders


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
        (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_hugging_face_folder_loads_whole_or_in_shards(safe, shards, tmp_path):
    write_hugging_face(tmp_path / "hub", shards, safe)
    loaded, _, _ = load_clip("tiny", tmp_path / "hub")
    assert same(loaded.state_dict())
    assert loaded.architecture.activation == "gelu"
    for index in (tmp_path / "hub").glob("*.index.json"):
        assert same(load_clip("tiny", index)[0].state_dict())


def test_a_missing_a_cut_and_an_exchanged_shard_are_named(tmp_path):
    write_hugging_face(tmp_path, 3)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    for data, message in (
        (None, "names model-00002-of-00003.safetensors, which is missing; download it too"),
        (whole[:-50], "names model-00002-of-00003.safetensors, which is not a complete safetensors file"),
        (POINTER, "names model-00002-of-00003.safetensors, which is a Git LFS pointer"),
        ((tmp_path / "model-00001-of-00003.safetensors").read_bytes(), "says that model-00002-of-00003.safetensors holds"),
    ):
        shard.unlink(missing_ok=True)
        if data is not None:
            shard.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path)


def test_one_shard_is_no_model(tmp_path):
    write_hugging_face(tmp_path, 2)
    with pytest.raises(ValueError, match="is shard 1 of 2; give the folder"):
        read_weights(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"one of several shards, but no \.index\.json that lists them"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a/b.bin", "..\\x.bin"])
def test_an_index_reads_only_files_beside_it(name, tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"visual.proj": name}}))
    with pytest.raises(ValueError, match="which is no file beside it"):
        read_weights(tmp_path / "pytorch_model.bin.index.json")


def test_a_snapshot_with_every_format_loads(tmp_path):
    write_hugging_face(tmp_path, 1, True)
    write_hugging_face(tmp_path, 1, False)
    for name in ("tf_model.h5", "flax_model.msgpack"):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert same(load_clip("tiny", tmp_path)[0].state_dict())


def test_open_clips_folder_states_its_activation(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(TINY)))
    save_file(STATE, tmp_path / "open_clip_model.safetensors")
    loaded, _, _ = load_clip("tiny", tmp_path)
    assert same(loaded.state_dict())
    assert loaded.architecture.activation == "gelu"


def test_a_variant_is_read_with_its_configuration(tmp_path):
    write_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    for source in (tmp_path, tmp_path / "model.fp16.safetensors"):
        assert load_clip("tiny", source)[0].architecture.activation == "gelu"


def test_the_only_file_of_a_folder_is_read(tmp_path):
    """As a Ray Train checkpoint, or what people make themselves."""
    folder = tmp_path / "checkpoint_000003"
    folder.mkdir()
    torch.save({"model": STATE}, folder / "checkpoint.pt")
    (folder / ".metadata.json").write_text("{}")
    torch.save(optimizer(), folder / "optimizer.pt")
    assert same(load_clip("tiny", folder, activation="gelu")[0].state_dict())
    with pytest.raises(ValueError, match=r"config\.json, which states how checkpoint\.pt was trained; .*give the activation"):
        load_clip("tiny", folder)
    torch.save(OTHER, folder / "epoch_2.pt")
    with pytest.raises(ValueError, match=r"holds several files of weights, checkpoint\.pt, epoch_2\.pt; give the path"):
        load_clip("tiny", folder, activation="gelu")
    with pytest.raises(ValueError, match="give the folder checkpoint_000003 in it"):
        load_clip("tiny", tmp_path, activation="gelu")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([".metadata", "__0_0.distcp"], "is a distributed checkpoint of PyTorch.*format_utils dcp_to_torch FOLDER FILE"),
        (["latest", "zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"], r"is a checkpoint of DeepSpeed.*zero_to_fp32\.py"),
        (["saved_model.pb", "variables/variables.index"], "holds saved_model.pb, weights of another framework"),
        (["checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"], "weights of another framework"),
        (["model.gguf"], "holds model.gguf, weights of another framework"),
        (["flax_model.msgpack", "config.json"], "holds flax_model.msgpack, weights of another framework"),
        (["snapshots/abc/model.safetensors", "snapshots/abc/config.json", "refs/main"], "give the folder snapshots/abc in it"),
        (["readme.md"], "holds no weights beside an open_clip_config"),
    ],
)  # fmt: skip
def test_a_folder_of_another_tool_is_named(files, message, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(tmp_path)
    assert_our_own_words(str(caught.value), tmp_path)


def test_the_remedy_for_a_distributed_checkpoint_works(tmp_path):
    import torch.distributed.checkpoint as distributed
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    distributed.save({"model": STATE}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    with pytest.raises(ValueError, match="is a distributed checkpoint of PyTorch"):
        read_weights(tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt").state)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "hf-hub:laion/CLIP-ViT-B-32"])
def test_a_name_of_a_hub_is_not_looked_up(name):
    with pytest.raises(ValueError, match=rf"names are not looked up; .*hf download {name.removeprefix('hf-hub:')} --local-dir"):
        read_weights(Path(name))


# ---- what the weights are of


def test_weights_that_fit_another_row_are_refused_with_its_name(tmp_path, monkeypatch):
    from dataclasses import replace

    for name, fields in {"wide": {"embed_dim": 32}, "tiny@32px": {"image_size_px": 32}}.items():
        monkeypatch.setitem(ARCHITECTURES, name, replace(TINY, name=name, **fields))
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"does not fit wide: .*; its model\.name is tiny or tiny@32px$"):
        load_clip("wide", tmp_path / "w.pt")  # without an activation too: what fits no model is not asked for one
    with pytest.raises(ValueError, match=r"does not fit debug-rn: lacks visual.*; its model\.name is tiny or tiny@32px$"):
        load_clip("debug-rn", tmp_path / "w.pt", activation="gelu")
    del ARCHITECTURES["tiny@32px"], ARCHITECTURES["tiny"]
    with pytest.raises(ValueError, match=r"no row of model/config\.py has these shapes"):
        load_clip("wide", tmp_path / "w.pt")


def test_every_architecture_is_known_by_its_shapes():
    from model.fitting_architectures import fitting_architectures

    for name, row in ARCHITECTURES.items():
        if row.vision_width * (row.vision_layers if isinstance(row.vision_layers, int) else 1) <= 12 * 768:
            with torch.device("meta"):
                assert name in fitting_architectures(CLIP(row).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("ln_final.bias"), r"lacks ln_final\.bias; the rest is a whole one's: save the state_dict"),
        (lambda state: state.update({"visual.ln_post.gamma": torch.ones(2)}), r"has visual\.ln_post\.gamma, which the model does not"),
        (lambda state: state.update({"visual.ln_post.bias": torch.ones(0)}), r"ln_post\.bias has shape \(0,\), not \(64,\)"),  # ZeRO-3
        (lambda state: state.update({"visual.positional_embedding": torch.ones(7, 64)}), r"has shape \(7, 64\), not \(5, 64\)"),
    ],
    ids=["missing", "extra", "ZeRO-3 [OpenRLHF 839]", "not square"],
)
def test_missing_and_extra_tensors_are_named(change, message, tmp_path):
    state = dict(STATE)
    change(state)
    torch.save(state, tmp_path / "w.pt")
    for size in (None, 32):
        with pytest.raises(ValueError, match=message.replace(r"\(5", r"\(\d+")):
            load_clip("tiny", tmp_path / "w.pt", activation="gelu", image_size_px=size)


def test_a_file_that_states_its_activation_is_not_asked_for_it(tmp_path):
    (tmp_path / "w.bin").write_bytes(as_safetensors(STATE, weights_metadata(TINY)))
    assert load_clip("tiny", tmp_path / "w.bin")[0].architecture.activation == "gelu"

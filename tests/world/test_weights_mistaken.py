"""Files that are taken for weights: each is named for what it is, with what to do, in our own words and never in PyTorch's."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from model.foreign_config import hugging_face_config
from model.weight_files import read_weights
from model.weights import load_clip
from tests.support.weights import (
    OTHER,
    POINTER,
    STATE,
    TINY,
    as_open_clips_custom_text,
    as_safetensors,
    assert_our_own_words,
    hugging_face,
    named_moments,
    optimizer,
    prefixed,
    saved,
)

pytestmark = pytest.mark.usefixtures("tiny_architecture")


class OwnTensor(torch.Tensor):
    """As torchao's are."""


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
    "a module": (
        torch.nn.Linear(2, 2),
        r"it is a pickle of a whole (torch\.nn\.modules\.linear\.Linear|module).*, which is not loaded",
    ),
    "a module in a dict": (
        {"model": torch.nn.Linear(2, 2), "epoch": 1},
        r"is not a plain state dict.* pickle.*, which is not loaded; .*state.dict",
    ),
    "NumPy arrays": ({key: value.numpy() for key, value in STATE.items()}, "is not a plain state dict"),
    "tensors of a class of their own": (
        STATE | {"visual.proj": STATE["visual.proj"].as_subclass(OwnTensor)},
        r"is not a plain state dict: it holds pickled objects, tests\.world\.test_weights_mistaken\.OwnTensor",
    ),
    "a single tensor": (torch.ones(3), "holds a single tensor, no state dict"),
    "nothing": ({}, "holds no state dict; give a mapping"),
    "an optimizer alone": (optimizer(), "holds the state of an optimizer, no weights; give the file of the model's weights"),
    "an optimizer in a dict": ({"optimizer": optimizer()}, "holds the state of an optimizer, no weights"),
    "moments with the names of weights": (named_moments(), "holds the state of an optimizer, no weights"),
    "a BERT": (
        {
            "bert.embeddings.word_embeddings.weight": torch.ones(2, 2),
            "bert.encoder.layer.0.attention.self.query.weight": torch.ones(2),
        },
        "holds a BERT or a model like it; only the CLIPs",
    ),
    "torchvision's ResNet-50": (
        {
            "conv1.weight": torch.ones(64, 3, 7, 7),
            "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1),
            "fc.weight": torch.ones(1000, 2048),
        },
        "holds a ResNet of torchvision or timm",
    ),
    "Hugging Face's SigLIP": (
        hugging_face() | {"vision_model.head.probe": torch.ones(1), "text_model.head.weight": torch.ones(1)},
        "holds a SigLIP; only the CLIPs",
    ),
    "open_clip's SigLIP": (
        {
            "visual.trunk.attn_pool.latent": torch.ones(1),
            "text.token_embedding.weight": torch.ones(2, 2),
            "logit_bias": torch.ones(1),
        },
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
    "a text encoder": (
        {key: value for key, value in STATE.items() if not key.startswith("visual.")},
        "holds a CLIP's text encoder alone",
    ),
    "Hugging Face's image encoder": (
        {key: value for key, value in hugging_face().items() if key.startswith("vision")},
        "holds a CLIP's image encoder alone",
    ),
    "a LoRA": ({"base_model.model.visual.proj.lora_A.weight": torch.ones(2)}, r"holds a LoRA .*merge_and_unload\(\)"),
    "a LoRA around a model": (
        STATE | {"visual.transformer.resblocks.0.mlp.c_fc.lora_B.default.weight": torch.ones(2)},
        "holds a LoRA",
    ),
    "bitsandbytes": (STATE | {"visual.transformer.resblocks.0.mlp.c_fc.weight.SCB": torch.ones(2)}, "holds quantised weights"),
    "FSDP's flat parameters [dinov2 544]": (
        {
            "_fsdp_wrapped_module._flat_param": torch.ones(9),
            "_fsdp_wrapped_module.visual._fsdp_wrapped_module._flat_param": torch.ones(9),
        },
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
        STATE | {"visual.proj": torch.quantize_per_tensor(STATE["visual.proj"], 0.1, 0, torch.qint8)},
        r"visual\.proj is qint8",
    ),
    "sparse tensors": (STATE | {"visual.proj": STATE["visual.proj"].to_sparse()}, r"visual\.proj is sparse"),
    "meta tensors": (STATE | {"visual.proj": STATE["visual.proj"].to("meta")}, r"visual\.proj is on the meta device"),
    "NaN": (
        STATE | {"visual.proj": STATE["visual.proj"] * float("nan")},
        r"NaN or infinite in visual\.proj \(1,024\); the run diverged",
    ),
    "infinite": (STATE | {"logit_scale": torch.tensor(float("inf"))}, r"NaN or infinite in logit_scale \(1\)"),
    "the temperature's factor [transformers 13436]": (
        STATE | {"logit_scale": torch.tensor(100.0)},
        "logit_scale is 100, but it is the log",
    ),
    "a bidirectional mask": (STATE | {"attn_mask": torch.zeros(8, 8)}, "attn_mask is not the causal mask"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED_CONTENTS)
def test_what_is_no_clip_is_named_and_refused(name, tmp_path):
    content, message = REFUSED_CONTENTS[name]
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert_our_own_words(str(caught.value), tmp_path / "w.pt")


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return file.getvalue()


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
    "a safetensors file cut in its data": (
        as_safetensors()[:-100],
        r"is not a complete safetensors file \(it has [\d,]+ of at least",
    ),
    "a safetensors file cut in its header": (as_safetensors()[:100], r"is not a complete safetensors file \(it has 100 of"),
    "a safetensors file with bytes after it": (as_safetensors() + b"0" * 9, "is not a safetensors file as written: it has"),
    "a safetensors file of zeros": (b"\x00" * 4096, "begins with the bytes 00 00"),
    "a zip cut [yolov10 154]": (saved()[:-300], "is not a plain state dict: the end of its zip archive is missing"),
    "a legacy file cut": (
        saved(_use_new_zipfile_serialization=False)[:-300],
        "is not a plain state dict: it is cut or damaged",
    ),
    "a zip with a damaged tensor": (damaged(saved(), PROJ), "is not a plain state dict: its zip archive is damaged"),
    "a zip of other files": (
        zip_of(readme__txt=b"x"),
        "is a zip archive of 1 files, such as readme.txt, and none of PyTorch's; unpack",
    ),
    "an empty zip": (zip_of(), "is an empty zip archive"),
    "a zip around a file": (zip_of(w__pt=saved()), r"is a zip archive of 1 files, such as w\.pt.*unpack"),
    "a gzip": (gzip.compress(saved()), "is a gzip file; unpack it"),
    "a tar": (tar_of(saved()), "is a tar archive; unpack it"),
    "a NumPy archive": (npz(), r"is a NumPy archive \(\.npz\) of 2 arrays"),
    "a pickle of Python": (pickle.dumps({"a": [1, 2]}), "it is a pickle that torch.save did not write"),
    "a pickle of Python, protocol 2": (
        pickle.dumps(STATE["logit_scale"], protocol=2),
        "it is a pickle that torch.save did not write",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\x00" * 60, "is an HDF5 file"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 10, 10), "is a GGUF file"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x80\x01", "is an ONNX model"),
    "msgpack": (b"\x82\xa6params\x81\xa6kernel\xc4\x01\x00", "is a msgpack file, as flax writes"),
    "the index of a TensorFlow checkpoint": (
        b"\x00\x01\x02" * 30 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "is the index of a TensorFlow",
    ),
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

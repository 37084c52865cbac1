"""Folders of weights: whole or in shards, of one tool or of several, with and without a configuration."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from model.foreign_config import hugging_face_config, open_clip_config
from model.weight_files import read_weights
from model.weights import load_clip
from tests.support.weights import OTHER, POINTER, STATE, TINY, assert_our_own_words, optimizer, same, write_hugging_face

pytestmark = pytest.mark.usefixtures("tiny_architecture")


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


def test_shards_of_two_models_with_other_activations_are_refused(tmp_path):
    write_hugging_face(tmp_path, 3)
    for number, activation in ((1, "quick_gelu"), (2, "gelu")):
        shard = tmp_path / f"model-0000{number}-of-00003.safetensors"
        save_file(load_file(shard), shard, metadata={"format": "pt", "activation": activation})
    with pytest.raises(ValueError, match=r"model-00001.* states activation=quick_gelu and model-00002.* activation=gelu"):
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
        (
            ["latest", "zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"],
            r"is a checkpoint of DeepSpeed.*zero_to_fp32\.py",
        ),
        (["saved_model.pb", "variables/variables.index"], "holds saved_model.pb, weights of another framework"),
        (["checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"], "weights of another framework"),
        (["data.pkl", "version", "data/0"], "is an unpacked file of torch.save; pack it again"),
        (["archive/data.pkl", "archive/version", "archive/data/0"], "is an unpacked file of torch.save; pack it again"),
        (["snapshots/abc/model.safetensors", "snapshots/abc/config.json", "refs/main"], "give the folder snapshots/abc in it"),
        (["readme.md"], "holds no weights beside an open_clip_config"),
    ],
)
def test_a_folder_of_another_tool_is_named(files, message, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(tmp_path)
    assert_our_own_words(str(caught.value), tmp_path)


def test_the_remedy_for_a_distributed_checkpoint_works(tmp_path):

    distributed.save({"model": STATE}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    with pytest.raises(ValueError, match="is a distributed checkpoint of PyTorch"):
        read_weights(tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt").state)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "hf-hub:laion/CLIP-ViT-B-32"])
def test_a_name_of_a_hub_is_not_looked_up(name):
    with pytest.raises(ValueError, match=rf"names are not looked up; .*hf download {name.removeprefix('hf-hub:')} --local-dir"):
        read_weights(Path(name))


def test_the_name_of_an_architecture_is_no_repository_of_a_hub():
    with pytest.raises(ValueError, match="it names an architecture, and weights are read from a file or folder"):
        read_weights(Path("ViT-B/32"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "dict_checkpoint.pkl",
            pickle.dumps({"model": 1}),
            r"dict_checkpoint\.pkl is not a plain state dict: it is a pickle that",
        ),
        ("model.gguf", b"GGUF\x03\x00\x00\x00", r"model\.gguf is a GGUF file"),
        ("flax_model.msgpack", b"\x82\xa6params\x81", r"flax_model\.msgpack is a msgpack file, as flax writes"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", r"tf_model\.h5 is an HDF5 file"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch", r"model\.onnx is an ONNX model"),
    ],
)
def test_the_only_file_of_a_folder_is_named_by_its_content(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(TINY)))
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize("outer", ["w", "archive"])
def test_the_remedy_for_an_unpacked_file_works(outer, tmp_path):
    torch.save(STATE, tmp_path / f"{outer}.pt")
    with zipfile.ZipFile(tmp_path / f"{outer}.pt") as archive:
        archive.extractall(tmp_path / "unpacked")
    folder = next((tmp_path / "unpacked").iterdir())
    with pytest.raises(ValueError, match=r"python -m zipfile -c w\.pt FOLDER"):
        read_weights(folder)
    zipfile.main(["-c", str(tmp_path / "w.pt"), str(folder)])
    assert same(read_weights(tmp_path / "w.pt").state)

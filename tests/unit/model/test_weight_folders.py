"""The files of a folder, by their names; tests/world/test_weights_folders.py reads them."""

import pytest

from model.weight_folders import choose_files, files_of, shards_of

SAFE, BIN = "model.safetensors", "pytorch_model.bin"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ({"checkpoint.json", SAFE, "state.safetensors"}, (SAFE, "checkpoint.json")),
        ({"checkpoint.json", SAFE, "average.safetensors"}, ("average.safetensors", "checkpoint.json")),
        ({"open_clip_config.json", "config.json", SAFE, "open_clip_pytorch_model.bin"},
         ("open_clip_pytorch_model.bin", "open_clip_config.json")),
        ({"config.json", SAFE, BIN, "preprocessor_config.json"}, (SAFE, "config.json", "preprocessor_config.json")),
        ({"config.json", f"{SAFE}.index.json", BIN}, (f"{SAFE}.index.json", "config.json")),
        ({"config.json", BIN, f"{BIN}.index.json", "tf_model.h5"}, (BIN, "config.json")),
        ({"open_clip_config.json", SAFE}, (SAFE, "open_clip_config.json")),
        ({"config.json", "model.fp16.safetensors"}, ("model.fp16.safetensors", "config.json")),
        ({"weights.pt", "optimizer.pt", "rng_state_0.pth", "training_args.bin"}, ("weights.pt",)),
        ({"checkpoints/step_00000009/checkpoint.json", f"checkpoints/step_00000009/{SAFE}",
          "checkpoints/step_00000010/checkpoint.json", f"checkpoints/step_00000010/{SAFE}",
          f"checkpoints/step_00000011/{SAFE}", "run.json"},
         (f"checkpoints/step_00000010/{SAFE}", "checkpoints/step_00000010/checkpoint.json")),
        ({"step_9/checkpoint.json", f"step_9/{SAFE}", "step_10/checkpoint.json", f"step_10/{SAFE}"},
         (f"step_10/{SAFE}", "step_10/checkpoint.json")),
    ],
)  # fmt: skip
def test_the_files_of_a_folder_are_chosen_in_their_order(names, chosen):
    assert choose_files(names) == chosen


def test_a_file_is_read_with_the_configuration_that_its_tool_reads():
    names = {"config.json", "open_clip_config.json", "checkpoint.json"}
    assert files_of("epoch_1.pt", names) == ("epoch_1.pt",)
    assert files_of("state.safetensors", names) == ("state.safetensors", "checkpoint.json")
    assert files_of(BIN, names) == (BIN, "config.json")
    assert files_of("open_clip_model.safetensors", names) == ("open_clip_model.safetensors", "open_clip_config.json")
    assert files_of("model-00001-of-00001.safetensors", set()) == ("model-00001-of-00001.safetensors",)


def test_a_checkpoint_without_weights_and_variants_that_compete_are_refused():
    with pytest.raises(ValueError, match="is a checkpoint without"):
        choose_files({"checkpoint.json", "state.safetensors"})
    with pytest.raises(ValueError, match=r"holds model\.fp16\.safetensors, model\.fp32\.safetensors, which config\.json"):
        choose_files({"config.json", "model.fp16.safetensors", "model.fp32.safetensors"})


@pytest.mark.parametrize("content", ["{}", "[]", "x", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_names_no_shards_is_refused(content, tmp_path):
    (tmp_path / "w.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"w\.index\.json (is not an index of shards|names (no shards|the shard 1))"):
        shards_of(tmp_path / "w.index.json")

"""Weights go in strictly and never under a guessed activation."""

import pytest
import torch

from model.clip import build_clip
from model.weights import load_clip, load_state, save_weights


@pytest.fixture
def clip():
    torch.manual_seed(1)
    return build_clip("debug-vit").eval()


def same(one, other) -> bool:
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_our_own_file_states_its_activation(clip, tmp_path):
    save_weights(clip, tmp_path / "clip.safetensors")
    loaded, preprocess, tokenize = load_clip("debug-vit", tmp_path / "clip.safetensors")
    assert same(clip, loaded)
    assert loaded.architecture.activation == "quick_gelu"
    assert preprocess.size_px == 32
    assert tokenize(["a dog"]).shape == (1, 77)


def test_foreign_weights_are_refused_until_the_activation_is_told(clip, tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in clip.state_dict().items()}}, path)
    with pytest.raises(ValueError, match=r"activation.*does not say"):
        load_clip("debug-vit", path)
    loaded, _, _ = load_clip("debug-vit", path, activation="gelu")
    assert same(clip, loaded)
    assert loaded.architecture.activation == "gelu"


def test_the_told_activation_is_the_one_that_computes(clip, tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(clip.state_dict(), path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        quick = load_clip("debug-vit", path, activation="quick_gelu")[0].encode_image(images)
        exact = load_clip("debug-vit", path, activation="gelu")[0].encode_image(images)
        torch.testing.assert_close(quick, clip.encode_image(images))
    assert float((quick - exact).abs().max()) > 1e-5


def test_a_contradiction_is_refused(clip, tmp_path):
    save_weights(clip, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="says that it was trained with quick_gelu"):
        load_clip("debug-vit", tmp_path / "clip.safetensors", activation="gelu")


def test_another_architecture_is_named_with_its_first_misfits(clip):
    with pytest.raises(ValueError, match=r"does not fit debug-rn: misses visual.*and \d+ more"):
        load_state(build_clip("debug-rn"), clip.state_dict(), "a file")


def test_a_cut_file_is_refused(clip, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_weights(clip, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_clip("debug-vit", path)


def test_a_pickle_of_objects_is_refused(tmp_path):
    torch.save({"state_dict": object()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a plain state dict"):
        load_clip("debug-vit", tmp_path / "evil.pt", activation="gelu")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "archive.pt"))
    with pytest.raises(ValueError, match="TorchScript"):
        load_clip("debug-vit", tmp_path / "archive.pt", activation="quick_gelu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        load_clip("debug-vit", tmp_path / "none.pt")

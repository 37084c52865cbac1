"""Weights go in strictly and never under a guessed activation."""

from dataclasses import replace

import pytest
import torch

from model.clip import CLIP, build_clip
from model.config import PUBLISHED, get_architecture
from model.weights import _fitting, interpolate, load_clip, load_state, resize_positions, save_weights


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
    with pytest.raises(ValueError, match=r"does not fit debug-rn: lacks visual.*and \d+ more"):
        load_state(build_clip("debug-rn"), clip.state_dict(), "a file")


def test_a_cut_file_is_refused(clip, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_weights(clip, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_clip("debug-vit", path)


def test_a_pickle_of_objects_is_refused(tmp_path):
    torch.save({"state_dict": object()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="is not a plain state dict"):
        load_clip("debug-vit", tmp_path / "evil.pt", activation="gelu")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "archive.pt"))
    with pytest.raises(ValueError, match="TorchScript"):
        load_clip("debug-vit", tmp_path / "archive.pt", activation="quick_gelu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        load_clip("debug-vit", tmp_path / "none.pt")


@pytest.mark.parametrize(("name", "size"), [("debug-vit", 48), ("debug-vit", 16), ("debug-rn", 96)])
def test_positions_are_interpolated_as_open_clip_does(name, size):
    from open_clip.model import resize_pos_embed

    start = build_clip(name)
    clip = CLIP(replace(start.architecture, image_size_px=size))
    resized = resize_positions(clip, start.state_dict())
    clip.load_state_dict(resized, strict=True)
    if name == "debug-vit":  # open_clip resizes no positions of ResNets
        expected = {"visual.positional_embedding": start.visual.positional_embedding.detach().clone()}
        clip.visual.grid_size = (size // 8, size // 8)
        resize_pos_embed(expected, clip)
        torch.testing.assert_close(resized["visual.positional_embedding"], expected["visual.positional_embedding"])
    state = start.state_dict()
    assert all(value is state[key] for key, value in resize_positions(start, state).items()), "the same size stays as it is"


def test_a_file_loads_at_another_image_size_only_when_it_is_asked_for(clip, tmp_path):
    save_weights(clip, tmp_path / "clip.safetensors")
    larger, preprocess, _ = load_clip("debug-vit", tmp_path / "clip.safetensors", image_size_px=64)
    assert preprocess.size_px == 64
    assert larger.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 32)


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_a_file_loads_at_the_image_size_and_with_the_bias_that_it_holds(name, tmp_path):
    row = build_clip(name).architecture
    other = CLIP(replace(row, image_size_px=row.image_size_px * 2, has_logit_bias=True))
    save_weights(other, tmp_path / "clip.safetensors")
    loaded, preprocess, _ = load_clip(name, tmp_path / "clip.safetensors")
    assert same(other, loaded)
    assert preprocess.size_px == row.image_size_px * 2


def test_numbers_that_openais_files_hold_beside_the_weights_are_left_out(clip, tmp_path):
    beside = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
    torch.save(clip.state_dict() | beside, tmp_path / "published.pt")
    assert same(clip, load_clip("debug-vit", tmp_path / "published.pt", activation="quick_gelu")[0])


def test_positions_of_another_kind_are_named(clip, tmp_path):
    torch.save(clip.state_dict() | {"visual.positional_embedding": torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"visual\.positional_embedding has shape \(3,\), not \(17, 64\)"):
        load_clip("debug-vit", tmp_path / "odd.pt", activation="quick_gelu")


def test_open_clips_models_with_a_text_module_load_too(clip, tmp_path):
    text = ("transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection")
    state = {("text." if key.startswith(text) else "") + key: value for key, value in clip.state_dict().items()}
    torch.save(state, tmp_path / "custom.pt")
    assert same(clip, load_clip("debug-vit", tmp_path / "custom.pt", activation="quick_gelu")[0])


def test_the_line_between_two_weights_has_both_at_its_ends(clip):
    start, end = build_clip("debug-rn").state_dict(), build_clip("debug-rn").state_dict()
    end["visual.bn1.num_batches_tracked"] += 10
    for share, expected in ((0.0, start), (1.0, end)):
        mixed = interpolate(start, end, share)
        assert all(torch.equal(value, expected[key]) for key, value in mixed.items())
    mixed = interpolate(start, end, 0.3)
    torch.testing.assert_close(mixed["text_projection"], 0.7 * start["text_projection"] + 0.3 * end["text_projection"])
    assert int(mixed["visual.bn1.num_batches_tracked"]) == 3
    with pytest.raises(ValueError, match="differ in names or shapes"):
        interpolate(clip.state_dict(), end, 0.5)


def test_weights_tell_their_architecture(clip, tmp_path):
    save_weights(clip, tmp_path / "clip.safetensors")
    loaded, _, _ = load_clip(None, tmp_path / "clip.safetensors")
    assert loaded.architecture.name == "debug-vit"
    assert same(clip, loaded)


@pytest.mark.parametrize("name", [*PUBLISHED, "debug-vit", "debug-rn", "demo"])
def test_every_architecture_is_told_from_its_shapes(name):
    with torch.device("meta"):
        state = CLIP(get_architecture(name)).state_dict()
    assert _fitting(state, "a file").name == name


def test_weights_of_no_row_are_refused_and_so_is_a_model_without_name_and_weights(tmp_path):
    other = CLIP(replace(get_architecture("debug-vit"), text_layers=3))
    save_weights(other, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"no row of model/config\.py has the shapes of these weights"):
        load_clip(None, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="name: is needed where no weights tell the architecture; give one of RN50"):
        load_clip(None)

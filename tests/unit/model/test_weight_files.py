"""Weights of others: their activation and architecture are found or asked for, and nothing is run that was not allowed."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from model.foreign_config import hugging_face_config, open_clip_config, preprocessor_config
from model.state_dict_keys import to_hugging_face
from model.weight_files import read_weights
from model.weights import load_clip, save_weights
from tests.support.models import Archive, random_clip


@pytest.fixture(scope="module")
def clip():
    return random_clip("debug-vit", activation="gelu")


def write(folder, **contents):
    """Files of a folder by the first part of their name; a config may be changed as a person would, by dotted keys."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def changed(config, **changes):
    """A copy of a configuration with `section__key` set; None takes the key away."""
    config = json.loads(json.dumps(config))
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[key]
        else:
            node[key] = value
    return config


@pytest.fixture
def open_clip_folder(clip, tmp_path):
    write(tmp_path / "theirs", open_clip_config=open_clip_config(clip.architecture))
    torch.save(clip.state_dict(), tmp_path / "theirs" / "open_clip_pytorch_model.bin")
    return tmp_path / "theirs"


@pytest.fixture
def hugging_face_folder(clip, tmp_path):
    row = clip.architecture
    write(tmp_path / "hub", config=hugging_face_config(row), preprocessor_config=preprocessor_config(row))
    save_file(to_hugging_face(clip.state_dict()), tmp_path / "hub" / "model.safetensors")
    return tmp_path / "hub"


def assert_is(clip, loaded):
    state = clip.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.architecture.activation == clip.architecture.activation


def test_a_folder_or_its_file_states_the_activation(clip, open_clip_folder, hugging_face_folder):
    sources = [open_clip_folder, hugging_face_folder]
    for source in (*sources, *(next(one.glob("*model.*")) for one in sources)):
        assert_is(clip, load_clip("debug-vit", source)[0])
        with pytest.raises(ValueError, match="says that it was trained with gelu"):
            load_clip("debug-vit", source, activation="quick_gelu")


def test_a_file_of_another_name_does_not_take_the_configuration_beside_it(clip, open_clip_folder):
    shutil.copy(open_clip_folder / "open_clip_pytorch_model.bin", open_clip_folder / "epoch_1.pt")
    with pytest.raises(ValueError, match="does not say which one it was trained with"):
        load_clip("debug-vit", open_clip_folder / "epoch_1.pt")
    assert_is(clip, load_clip("debug-vit", open_clip_folder / "epoch_1.pt", activation="gelu")[0])


def test_hugging_faces_keys_without_a_configuration_load_when_the_activation_is_told(clip, hugging_face_folder):
    for name in ("config.json", "preprocessor_config.json"):
        (hugging_face_folder / name).unlink()
    with pytest.raises(ValueError, match=r"has no open_clip_config\.json or config\.json, which states how model\.safetensors"):
        load_clip("debug-vit", hugging_face_folder)
    file = hugging_face_folder / "model.safetensors"
    with pytest.raises(ValueError, match="does not say which one it was trained with"):
        load_clip("debug-vit", file)
    assert_is(clip, load_clip("debug-vit", file, activation="gelu")[0])


def test_another_architecture_is_refused_with_the_name_that_fits(open_clip_folder, hugging_face_folder):
    for source, config in ((open_clip_folder, "open_clip_config.json"), (hugging_face_folder, "config.json")):
        with pytest.raises(ValueError, match=rf"is not demo: its {config} says embed_dim=32, not 128; .*name is debug-vit$"):
            load_clip("demo", source)
    write(
        open_clip_folder,
        open_clip_config=changed(open_clip_config(random_clip("debug-vit").architecture), model_cfg__embed_dim=7),
    )
    with pytest.raises(ValueError, match=r"embed_dim=7, not 32; no row of model/config\.py describes it"):
        load_clip("debug-vit", open_clip_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_cfg__vision_cfg__timm_model_name": "vit_tiny"},
            "vision_cfg.timm_model_name='vit_tiny': differs from None",
        ),
        ({"model_cfg__text_cfg__pool_type": "last"}, "text_cfg.pool_type='last'"),
        ({"model_cfg__vision_cfg__head_width": 32}, "vision_cfg.head_width=32"),
        ({"preprocess_cfg__mean": [0.5, 0.5, 0.5]}, r"preprocess_cfg.mean=\[0.5, 0.5, 0.5\].*differs from \(0.48"),
        ({"preprocess_cfg__resize_mode": "squash"}, "preprocess_cfg.resize_mode='squash'"),
        ({"model_cfg__vision_cfg": None}, "lacks embed_dim, vision_cfg or text_cfg; restore the file"),
        ({"model_cfg__vision_cfg": "ViT"}, "is not the configuration of a CLIP; restore"),
    ],
)
def test_an_open_clip_model_that_is_no_clip_of_the_paper_is_refused(open_clip_folder, clip, changes, message):
    write(open_clip_folder, open_clip_config=changed(open_clip_config(clip.architecture), **changes))
    with pytest.raises(ValueError, match=rf"weights=.*theirs: open_clip_config\.json: {message}"):
        load_clip("debug-vit", open_clip_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config__hidden_act": "relu"}, "vision_config.hidden_act='relu': is neither quick_gelu nor gelu.*use weights"),
        (
            {"text_config__hidden_act": "quick_gelu"},
            "hidden_act: the image encoder's is gelu and the text encoder's quick_gelu",
        ),
        ({"vision_config__num_attention_heads": 2}, "vision_config.num_attention_heads=2"),
        ({"text_config__layer_norm_eps": 1e-6}, "text_config.layer_norm_eps=1e-06"),
        ({"model_type": "siglip"}, "model_type='siglip': is not clip; give the folder of a CLIPModel"),
        ({"model_type": None}, "model_type=None: is not clip"),
        ({"text_config": [1]}, "is not the configuration of a CLIP"),
        ({"text_config__eos_token_id": 320}, "text_config.eos_token_id=320: differs from 49407"),
        (
            {"vision_config_dict": {"hidden_act": "gelu", "hidden_size": 256}, "vision_config__image_size": 32},
            "vision_config.intermediate_size=3072: differs from 1024",  # of the class, not of vision_config
        ),
    ],
)
def test_a_hugging_face_model_that_is_no_clip_of_the_paper_is_refused(hugging_face_folder, clip, changes, message):
    write(hugging_face_folder, config=changed(hugging_face_config(clip.architecture), **changes))
    with pytest.raises(ValueError, match=rf"weights=.*hub: config\.json: {message}"):
        load_clip("debug-vit", hugging_face_folder)


@pytest.mark.parametrize("nested", [False, True])
def test_other_preprocessing_is_refused_under_either_name_of_its_file(hugging_face_folder, clip, nested):
    other = changed(preprocessor_config(clip.architecture), image_mean=[0.5, 0.5, 0.5])
    (hugging_face_folder / "preprocessor_config.json").unlink()
    if nested:
        write(hugging_face_folder, processor_config={"image_processor": other})
    else:
        write(hugging_face_folder, preprocessor_config=other)
    with pytest.raises(ValueError, match=r"image_processor\.image_mean=\[0\.5, 0\.5, 0\.5\]: differs from"):
        load_clip("debug-vit", hugging_face_folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"shortest_edge": 48}),
        ("size", {"height": 32, "width": 32}),
        ("size", 48),
        ("crop_size", {"height": 32, "width": 48}),
        ("rescale_factor", 1 / 127.5),
        ("image_processor_type", "ViTImageProcessor"),
        ("feature_extractor_type", "ViTFeatureExtractor"),
    ],
)
def test_other_sizes_and_kinds_of_image_processors_are_refused(hugging_face_folder, clip, key, value):
    write(hugging_face_folder, preprocessor_config=preprocessor_config(clip.architecture) | {key: value})
    with pytest.raises(ValueError, match=rf"image_processor\.{key}=.*differs from"):
        load_clip("debug-vit", hugging_face_folder)


def test_sizes_of_older_image_processors_are_those_of_the_model(hugging_face_folder, clip):
    size = clip.architecture.image_size_px
    write(hugging_face_folder, preprocessor_config=preprocessor_config(clip.architecture) | {"size": size, "crop_size": size})
    assert load_clip("debug-vit", hugging_face_folder)[0].architecture.image_size_px == size


def test_both_files_of_an_image_processor_are_checked(hugging_face_folder, clip):
    other = changed(preprocessor_config(clip.architecture), image_std=[0.5, 0.5, 0.5])
    write(hugging_face_folder, processor_config={"image_processor": other})
    with pytest.raises(ValueError, match=r"image_processor\.image_std"):
        load_clip("debug-vit", hugging_face_folder)


@pytest.mark.parametrize("size", [48, [16, 64], 224])
def test_an_image_size_that_is_not_the_weights_is_refused(open_clip_folder, clip, size):
    write(
        open_clip_folder, open_clip_config=changed(open_clip_config(clip.architecture), model_cfg__vision_cfg__image_size=size)
    )
    with pytest.raises(ValueError, match=rf"says image_size={re.escape(str(size))}, but the weights' positions are for 32 px"):
        load_clip("debug-vit", open_clip_folder)


def test_folders_that_hold_no_weights_are_refused(tmp_path, clip, hugging_face_folder):
    with pytest.raises(ValueError, match=r"holds no weights beside an open_clip_config\.json or config\.json; give the folder"):
        read_weights(tmp_path)
    write(tmp_path, config="{")
    save_weights(clip, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json: is not JSON .*download or export it again"):
        read_weights(tmp_path)
    write(tmp_path, config="[]")
    with pytest.raises(ValueError, match=r"config\.json: holds a list, not a mapping"):
        read_weights(tmp_path)
    write(tmp_path, config=hugging_face_config(clip.architecture))
    with pytest.raises(ValueError, match="lacks the keys of a CLIPModel"):
        read_weights(tmp_path)
    whole = (hugging_face_folder / "model.safetensors").read_bytes()
    (hugging_face_folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"is not a complete safetensors file .*download or export it again"):
        read_weights(hugging_face_folder)


def test_a_file_and_its_configuration_that_disagree_are_refused(clip, tmp_path):
    save_weights(clip, tmp_path / "open_clip_model.safetensors")
    write(tmp_path, open_clip_config=changed(open_clip_config(clip.architecture), model_cfg__quick_gelu=True))
    with pytest.raises(ValueError, match=r"trained with gelu, but open_clip_config\.json says quick_gelu; correct the one"):
        read_weights(tmp_path)


def test_scalars_that_open_clip_keeps_as_vectors_are_scalars_here(clip, tmp_path):
    state = clip.state_dict()
    torch.save(state | {"logit_scale": state["logit_scale"].reshape(1)}, tmp_path / "vectors.pt")
    assert_is(clip, load_clip("debug-vit", tmp_path / "vectors.pt", activation="gelu")[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_a_torchscript_archive_is_loaded_only_where_that_is_allowed(name, tmp_path):
    clip = random_clip(name)
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(Archive(clip)).save(str(path))
    with pytest.raises(
        ValueError, match=r"is a TorchScript archive, which is a program .*set model\.allow_torchscript=true, or give --allow"
    ):
        load_clip(name, path, activation="quick_gelu")
    loaded, _, _ = load_clip(name, path, activation="quick_gelu", allow_torchscript=True)
    for key, value in loaded.state_dict().items():
        expected = clip.state_dict()[key]
        assert torch.equal(value, expected.half().float() if expected.is_floating_point() else expected)
        assert value.dtype == expected.dtype
    with pytest.raises(ValueError, match="does not say which one it was trained with"):
        load_clip(name, path, allow_torchscript=True)
    with pytest.raises(ValueError, match="does not fit demo"):
        load_clip("demo", path, activation="quick_gelu", allow_torchscript=True)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is not a plain state dict"):
        load_clip(name, path, activation="quick_gelu", allow_torchscript=True)


@pytest.mark.parametrize("share", [0.999, 0.95, 0.5, 0.1])
def test_a_file_whose_tail_is_zeros_is_refused(clip, tmp_path, share):
    path = tmp_path / "w.safetensors"
    save_weights(clip, path)
    content = path.read_bytes()
    kept = int(share * len(content))
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    with pytest.raises(ValueError, match=r"zeros (within|in) .*, as if a download had stopped; download"):
        load_clip("debug-vit", path)


def test_newly_initialised_weights_are_no_tail_of_zeros(tmp_path):
    from model.clip import CLIP
    from model.config import get_architecture

    save_weights(CLIP(get_architecture("debug-vit")), tmp_path / "w.safetensors")
    load_clip("debug-vit", tmp_path / "w.safetensors")


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_another_vocabulary_is_refused_and_the_published_one_is_not(clip, hugging_face_folder, file):
    from model.vocabulary import vocabulary

    ids = vocabulary()
    swapped = ids | {"red</w>": ids["dog</w>"], "dog</w>": ids["red</w>"]}
    for found, is_right in (
        (ids, True),
        (swapped, False),
        (dict(list(ids.items())[1:]), False),
        (ids | {"<new>": 49408}, False),
    ):
        content = {"model": {"type": "BPE", "vocab": found}} if file == "tokenizer.json" else found
        (hugging_face_folder / file).write_text(json.dumps(content))
        if is_right:
            assert_is(clip, load_clip("debug-vit", hugging_face_folder)[0])
        else:
            with pytest.raises(ValueError, match=rf"{file}: the token .* in the paper's CLIP"):
                load_clip("debug-vit", hugging_face_folder)

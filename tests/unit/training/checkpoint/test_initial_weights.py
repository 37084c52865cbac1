"""A run starts from weights of others, wherever they lie."""

import json

import pytest
import torch

from model.clip import CLIP
from model.foreign_config import hugging_face_config
from model.state_dict_keys import to_hugging_face
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.models import random_clip
from tests.support.runs import config_of
from training.checkpoint.initial_weights import load_initial_weights
from training.run_plan import plan_run


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder as Hugging Face's, and the model in it."""
    clip, folder = random_clip("debug-vit", activation="gelu"), tmp_path_factory.mktemp("hub")
    (folder / "config.json").write_text(json.dumps(hugging_face_config(clip.architecture)))
    torch.save(to_hugging_face(clip.state_dict()), folder / "pytorch_model.bin")
    return folder, clip


@pytest.mark.parametrize("remote", [False, True])
def test_a_run_starts_from_a_hugging_face_folder_with_its_activation(hub, data_set, tmp_path, request, remote):
    folder, start = hub
    uri = str(folder)
    if remote:
        uri = f"{request.getfixturevalue('bucket')}/hub"
        for path in folder.iterdir():
            open_storage(uri).write_file(path.name, path)
    plan = plan_run(config_of(data_set, tmp_path, f"model.weights={uri}"))
    assert plan.architecture.activation == plan.config.model.activation == "gelu"
    clip = CLIP(plan.architecture)
    load_initial_weights(clip, plan.config.model)
    assert all(torch.equal(value, start.state_dict()[key]) for key, value in clip.state_dict().items())
    with pytest.raises(ConfigError, match=r"model\.activation=quick_gelu: .*says that it was trained with gelu"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={uri}", "model.activation=quick_gelu"))
    with pytest.raises(ConfigError, match=rf"model\.weights={uri}: is not debug-rn: its config\.json says.*debug-vit$"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={uri}", "model.name=debug-rn"))


def test_bad_weights_in_object_storage_are_named_by_their_address(hub, data_set, tmp_path, bucket):
    storage = open_storage(f"{bucket}/bad")
    storage.write("config.json", (hub[0] / "config.json").read_bytes())
    for path, message in (
        ("", "/bad/: holds no weights beside an open_clip_config.json or config.json"),
        ("model.safetensors", "/bad/model.safetensors: is not a complete safetensors file"),
    ):
        with pytest.raises(ConfigError, match=rf"^model\.weights={bucket}{message}"):
            plan_run(config_of(data_set, tmp_path, f"model.weights={bucket}/bad/{path}"))
        storage.write("model.safetensors", b"half")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_run_starts_from_a_torchscript_archive_only_where_that_is_allowed(data_set, tmp_path):
    path = tmp_path / "archive.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    told = (f"model.weights={path}", "model.activation=quick_gelu")
    with pytest.raises(ConfigError, match=r"^model\.weights=.*archive\.pt: is a TorchScript archive.*allow_torchscript=true"):
        plan_run(config_of(data_set, tmp_path, *told))
    with pytest.raises(ConfigError, match="does not fit debug-vit"):
        plan_run(config_of(data_set, tmp_path, *told, "model.allow_torchscript=true"))

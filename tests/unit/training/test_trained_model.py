"""A model from wherever it is stored: what the place states need not be told, and what is told may not contradict it."""

import json

import pytest
import torch

from jobs.export import write_export
from jobs.reporting.model_card import Origin
from model.weights import save_weights
from pipeline.errors import ConfigError
from tests.support.models import random_clip
from tests.support.runs import ALONE, config_of
from training.trained_model import open_trained_model
from training.trainer import train


@pytest.fixture(scope="module")
def run(data_set, tmp_path_factory):
    """Folder of a short run with a moving average, in half precision."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ("train.max_steps=2", "optimizer.warmup_steps=1", "train.precision=bfloat16", "train.ema_decay=0.9")
    train(config_of(data_set, folder, *settings), ALONE)
    return folder / "debug_cpu"


def same(clip, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in clip.state_dict().items())


def test_a_run_and_its_checkpoint_are_one_model_with_its_precision(run):
    opened = open_trained_model(str(run))
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert opened.clip.architecture.name == "debug-vit"
    assert not opened.clip.training
    assert opened.train.precision == "bfloat16"
    assert opened.address == str(checkpoint)
    assert same(opened.clip, open_trained_model(str(checkpoint)).clip)


@pytest.mark.parametrize("told", [{"name": "ViT-B/32"}, {"activation": "gelu"}, {"image_size_px": 64}])
def test_what_a_run_contradicts_is_refused(run, told):
    ((key, value),) = told.items()
    with pytest.raises(ConfigError, match=f"^{key}={value}: .* was trained with .*; omit it$"):
        open_trained_model(str(run), **told)


def test_a_run_without_a_checkpoint_and_an_address_without_anything_are_refused(run, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"id": "a"}))
    with pytest.raises(ConfigError, match=f"^{tmp_path}: holds no checkpoint; give the folder of one"):
        open_trained_model(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no such file; give the path of a state dict, or of a folder"):
        open_trained_model(str(tmp_path / "none"))


@pytest.mark.parametrize("layout", ["file", "export", "hf"])
def test_weights_and_exports_say_what_they_are(layout, tmp_path):
    clip = random_clip("debug-vit", activation="gelu")
    if layout == "file":
        save_weights(clip, tmp_path / "w.safetensors")
    else:
        write_export(
            tmp_path,
            clip,
            Origin("mine", "mine.pt"),
        )
    place = {"file": tmp_path / "w.safetensors", "export": tmp_path, "hf": tmp_path / "hf"}[layout]
    opened = open_trained_model(str(place))
    assert opened.clip.architecture == clip.architecture
    assert same(clip, opened.clip)
    assert opened.train.precision == "auto"


def test_the_activation_is_asked_for_where_nothing_states_it(tmp_path):
    clip = random_clip("debug-vit")
    torch.save(clip.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="both have the same keys; give quick_gelu"):
        open_trained_model(str(tmp_path / "w.pt"))
    assert same(clip, open_trained_model(str(tmp_path / "w.pt"), activation="quick_gelu").clip)


def test_weights_in_object_storage_are_opened(bucket, tmp_path):
    from pipeline.storage.address import open_storage

    clip = random_clip("debug-vit")
    save_weights(clip, tmp_path / "w.safetensors")
    open_storage(bucket).write_file("models/w.safetensors", tmp_path / "w.safetensors")
    opened = open_trained_model(f"{bucket}/models/w.safetensors")
    assert same(clip, opened.clip)
    assert opened.address == f"{bucket}/models/w.safetensors"

"""Models from a run's checkpoint, or from a file of weights."""

import argparse

import pytest
import torch

from jobs.cli.config import load_config
from jobs.cli.open_model import add_weights_options, last_checkpoint, open_run, open_weights
from model.clip import build_clip
from model.weights import save_weights
from pipeline.errors import ConfigError
from tests.support.runs import ALONE, config_of
from training.trainer import train


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_weights_options(parser)
    return parser.parse_args(list(words), argparse.Namespace(config="debug_cpu", overrides=[]))


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^run.name=none: .*none holds no checkpoint; name a trained run, and with run.dir "):
        last_checkpoint(load_config("debug_cpu", [f"run.dir={tmp_path}", "run.name=none"]))


def test_the_last_checkpoint_of_a_run_is_opened_for_evaluation(data_set, tmp_path, capsys):
    train(config_of(data_set, tmp_path, "train.max_steps=2", "optimizer.warmup_steps=1"), ALONE)
    clip, trained, address = open_run(load_config("debug_cpu", [f"run.dir={tmp_path}"]))
    assert not clip.training
    assert trained.train.max_steps == 2
    assert address.endswith("step_00000002")
    assert f"debug-vit of {address}, 64 samples seen" in capsys.readouterr().out


def test_weights_are_opened_by_the_name_of_their_architecture(tmp_path):
    torch.manual_seed(0)
    clip = build_clip("debug-vit")
    path = tmp_path / "clip.safetensors"
    save_weights(clip, path)
    opened = open_weights(load_config("debug_cpu"), options("--weights", str(path)))
    assert not opened.training
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in clip.state_dict().items())
    with pytest.raises(ConfigError):
        open_weights(load_config("debug_cpu", ["model.name=debug-rn"]), options("--weights", str(path)))


def test_weights_tell_their_architecture_where_neither_a_key_nor_a_recipe_does(tmp_path):
    clip = build_clip("debug-vit")
    save_weights(clip, tmp_path / "clip.safetensors")
    told = options("--weights", str(tmp_path / "clip.safetensors"))
    told.config = "default"
    assert load_config("default").model.name == "demo"
    assert open_weights(load_config("default"), told).architecture.name == "debug-vit"
    told.overrides = ["model.name=demo"]
    with pytest.raises(ConfigError, match=r"its model\.name is debug-vit"):
        open_weights(load_config("default", told.overrides), told)


def test_a_missing_file_of_weights_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        open_weights(load_config("debug_cpu"), options("--weights", str(tmp_path / "none.pt")))

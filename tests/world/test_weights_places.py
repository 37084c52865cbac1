"""Weights where people keep them: a run's own folders and object storage; and the plan of a run that names them."""

import json
import lzma

import pytest
import torch
from safetensors.torch import save

from jobs.cli.config import load_config
from jobs.cli.open_model import open_weights
from model.clip import CLIP
from model.weights import load_clip, weights_metadata
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.models import random_clip, randomise
from tests.support.runs import ROOT, config_of
from tests.support.weights import POINTER, STATE, TINY, as_safetensors, same, saved, write_hugging_face
from tests.unit.jobs.cli.test_open_model import options
from training.checkpoint.initial_weights import load_initial_weights
from training.checkpoint.snapshot import Position, Stager
from training.checkpoint.store import CheckpointStore
from training.config import ModelConfig
from training.run_plan import plan_run

pytestmark = pytest.mark.usefixtures("tiny_architecture")


def clip_of(seed: int) -> CLIP:
    clip = CLIP(TINY)
    randomise(clip, seed)
    return clip


def write_checkpoint(run: str, step: int, seed: int, average: int | None = None) -> str:
    """A checkpoint as a run writes it. Returns its address."""
    clip = clip_of(seed)
    optimizer = torch.optim.AdamW(clip.parameters())
    sum(parameter.sum() for parameter in clip.parameters()).backward()
    optimizer.step()
    clip.load_state_dict(clip_of(seed).state_dict())
    snapshot = Stager().stage(clip, optimizer, Position(step, step * 8), None if average is None else clip_of(average))
    record = {"order": {}, "data_sets": [], "config": {}, "metrics": {}, "started_from": ""}
    store = CheckpointStore(open_storage(run))
    return store.storage.address(store.write(snapshot, record))


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """An address to write under."""
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def load(uri: str, **fields) -> CLIP:
    clip = CLIP(TINY)
    load_initial_weights(clip, ModelConfig(name="tiny", weights=uri, **fields))
    return clip


def opened(uri: str) -> CLIP:
    config = load_config("debug_cpu")
    model = config.model.model_copy(update={"name": "tiny", "image_size_px": None})
    return open_weights(config.model_copy(update={"model": model}), options("--weights", uri))


def test_a_runs_own_folder_and_its_checkpoints_are_weights(root, caplog):
    run = f"{root}/runs/mine"
    first, last = write_checkpoint(run, 9, seed=1), write_checkpoint(run, 10, seed=2)
    for uri, seed in (
        (first, 1),
        (last, 2),
        (run, 2),
        (f"{run}/checkpoints", 2),
        (f"{first}/model.safetensors", 1),
        (f"{run}/", 2),
    ):
        assert same(load(uri).state_dict(), clip_of(seed).state_dict()), uri
        assert same(opened(uri).state_dict(), clip_of(seed).state_dict()), uri
    assert f"weights={run}: reads checkpoints/step_00000010/model.safetensors" in caplog.text


def test_the_moving_average_of_a_checkpoint_is_loaded_as_by_evaluation(root, caplog):
    folder = write_checkpoint(f"{root}/run", 3, seed=1, average=2)
    assert same(opened(folder).state_dict(), clip_of(2).state_dict())
    assert f"weights={folder}: reads average.safetensors" in caplog.text
    assert same(load(f"{folder}/model.safetensors").state_dict(), clip_of(1).state_dict())


def test_a_damaged_checkpoint_and_its_other_files_are_named(root):
    folder = write_checkpoint(f"{root}/run", 3, seed=1)
    with pytest.raises(ConfigError, match=r"holds the state of an optimizer, no weights"):
        load(f"{folder}/state.safetensors")
    with pytest.raises(ConfigError, match="is a record, no weights; give the folder that it lies in"):
        load(f"{folder}/checkpoint.json")
    place = open_storage(folder)
    data = place.read("model.safetensors")
    place.write("model.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    for uri in (folder, f"{root}/run", f"{folder}/model.safetensors"):
        with pytest.raises(
            ConfigError, match=r"does not match the sha256 in \S*checkpoint\.json, so it is damaged; give another"
        ):
            load(uri)


def test_shards_and_files_are_weights_wherever_they_lie(root, tmp_path):
    write_hugging_face(tmp_path / "here", 3)
    place = open_storage(f"{root}/hub")
    for file in (tmp_path / "here").iterdir():
        place.write_file(file.name, file)
    for uri in (f"{root}/hub", f"{root}/hub/model.safetensors.index.json"):
        assert same(load(uri).state_dict())
        assert same(opened(uri).state_dict())
    place.delete("model-00003-of-00003.safetensors")
    with pytest.raises(
        ConfigError, match=rf"^model\.weights={root}/hub: .*names model-00003-of-00003\.safetensors, which is missing"
    ):
        load(f"{root}/hub")
    place.write("w.ckpt", saved({"state_dict": {f"model.{key}": value for key, value in STATE.items()}}))
    assert same(load(f"{root}/hub/w.ckpt", activation="gelu").state_dict())
    place.write("pointer.bin", POINTER)
    with pytest.raises(ConfigError, match=rf"weights={root}/hub/pointer\.bin: is a Git LFS pointer"):
        opened(f"{root}/hub/pointer.bin")


@pytest.mark.parametrize("uri", ["s3://{bucket}/none", "s3://{bucket}/none/w.pt"])
def test_an_address_of_nothing_is_named(uri, bucket):
    address = uri.replace("s3://{bucket}", bucket)
    with pytest.raises(ConfigError, match=rf"^model\.weights={address}: there is no such object"):
        load(address)


def test_a_file_address_and_a_home_are_weights(tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(as_safetensors(STATE, weights_metadata(TINY)))
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in (f"file://{tmp_path}/w.bin", "~/w.bin"):
        assert same(load(uri).state_dict())


def test_a_run_that_names_wrong_weights_is_refused_while_it_is_planned(data_set, tmp_path):
    (tmp_path / "w.bin").write_bytes(POINTER)
    with pytest.raises(ConfigError, match=r"^model\.weights=\S+w\.bin: is a Git LFS pointer"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={tmp_path}/w.bin", "model.activation=gelu"))
    (tmp_path / "w.bin").write_bytes(as_safetensors())
    with pytest.raises(ConfigError, match=r"does not fit debug-vit: .*; its model\.name is tiny$"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={tmp_path}/w.bin"))


def test_a_run_says_which_of_several_weights_it_starts_from(data_set, tmp_path, caplog):
    state = random_clip("debug-vit", seed=3).state_dict()
    torch.save({"model": {key: value + 1 for key, value in state.items()}, "model_ema": state}, tmp_path / "w.pt")
    plan = plan_run(config_of(data_set, tmp_path, f"model.weights={tmp_path}/w.pt", "model.activation=gelu"))
    assert f"model.weights={tmp_path}/w.pt: w.pt holds 2 CLIPs" in caplog.text
    clip = CLIP(plan.architecture)
    load_initial_weights(clip, plan.config.model)
    assert same(clip.state_dict(), state)


def test_a_checkpoint_of_the_first_version_is_weights(tmp_path):
    held = ROOT / "tests" / "fixtures" / "version_0_1" / "run" / "checkpoints"
    for file in held.rglob("*.*"):
        target = tmp_path / "checkpoints" / file.relative_to(held).with_suffix("" if file.suffix == ".xz" else file.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes())
    name = json.loads(next(tmp_path.rglob("checkpoint.json")).read_text())["config"]["model"]["name"]
    assert load_clip(name, tmp_path)[0].architecture.name == name


def test_the_metadata_of_a_file_without_a_suffix_is_read(tmp_path):
    (tmp_path / "weights").write_bytes(save(STATE, weights_metadata(TINY)))
    assert load_clip("tiny", tmp_path / "weights")[0].architecture.activation == "gelu"

"""A checkpoint is visible whole or not at all, checked when it is read, and holds no pickle."""

import json
import random
import shutil
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from model.clip import build_clip
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from training.checkpoint.snapshot import Position, Stager
from training.checkpoint.store import CheckpointStore, DamagedError
from training.config import CheckpointConfig, OptimizerConfig
from training.optimizer import build_optimizer


def model_and_optimizer(seed: int, steps: int = 2):
    torch.manual_seed(seed)
    clip = build_clip("debug-rn")
    optimizer = build_optimizer(clip, OptimizerConfig())
    for _ in range(steps):
        optimizer.zero_grad()
        images = clip.encode_image(torch.randn(4, 3, 64, 64), normalize=True)
        texts = clip.encode_text(torch.randint(1, 49407, (4, 5)), normalize=True)
        ((images - texts).square().sum() * clip.logit_scale.exp()).backward()
        optimizer.step()
    return clip, optimizer


def save(store, clip, optimizer, step, **metrics):
    return store.write(Stager().stage(clip, optimizer, Position(step, 32 * step)), about(**metrics))


def about(**metrics):
    data_sets = [{"version": 3, "identity": "x", "uri": "u"}]
    return {"order": {"seed": 1}, "data_sets": data_sets, "config": {"model": {}}, "metrics": metrics, "started_from": ""}


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    uri = str(tmp_path / "run") if request.param == "local" else f"{request.getfixturevalue('bucket')}/run"
    return CheckpointStore(open_storage(uri), CheckpointConfig(keep_last=2))


def test_what_is_saved_is_restored_bit_for_bit(store):
    clip, optimizer = model_and_optimizer(seed=1)
    save(store, clip, optimizer, 7)
    random_state = torch.get_rng_state()
    other, other_optimizer = model_and_optimizer(seed=2, steps=0)
    checkpoint = store.latest()
    checkpoint.restore(other, other_optimizer)
    assert checkpoint.position == Position(step=7, samples_seen=224)
    assert checkpoint.data_sets[0]["version"] == 3
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in clip.state_dict().items())
    for mine, theirs in zip(optimizer.param_groups, other_optimizer.param_groups, strict=True):
        for one, two in zip(mine["params"], theirs["params"], strict=True):
            assert optimizer.state[one].keys() == other_optimizer.state[two].keys()
            for key, value in optimizer.state[one].items():
                assert torch.equal(value, other_optimizer.state[two][key])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_run_without_checkpoints_has_none(store):
    assert store.latest() is None


def test_the_newest_is_found_and_the_oldest_are_removed(store):
    clip, optimizer = model_and_optimizer(seed=1)
    for step in (9, 10, 100):
        save(store, clip, optimizer, step)
    assert store.latest().position.step == 100
    folders = {item.path.split("/")[1] for item in store.storage.list("checkpoints/")}
    assert folders == {"step_00000010", "step_00000100"}


def test_a_folder_without_its_record_is_no_checkpoint(store):
    clip, optimizer = model_and_optimizer(seed=1)
    save(store, clip, optimizer, 1)
    folder = save(store, clip, optimizer, 2)
    store.storage.delete(f"{folder}/checkpoint.json")
    assert store.latest().position.step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, caplog, name, damage):
    store = CheckpointStore(open_storage(str(tmp_path / "run")), CheckpointConfig(keep_last=2))
    clip, optimizer = model_and_optimizer(seed=1)
    save(store, clip, optimizer, 1)
    path = tmp_path / "run" / save(store, clip, optimizer, 2) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = content.index(b"sha256") + 12 if name == "checkpoint.json" else len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert store.latest().position.step == 1
    if not (name == "checkpoint.json" and damage == "missing"):
        assert "step_00000002 is damaged" in caplog.text


def test_when_all_are_damaged_the_run_does_not_start_anew(tmp_path):
    store = CheckpointStore(open_storage(str(tmp_path / "run")), CheckpointConfig(keep_last=2))
    clip, optimizer = model_and_optimizer(seed=1)
    folder = save(store, clip, optimizer, 1)
    (tmp_path / "run" / folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="none of the 1 checkpoints is whole"):
        store.latest()


def test_a_checkpoint_of_another_format_is_not_read(tmp_path):
    store = CheckpointStore(open_storage(str(tmp_path / "run")), CheckpointConfig(keep_last=2))
    clip, optimizer = model_and_optimizer(seed=1)
    record = tmp_path / "run" / save(store, clip, optimizer, 1) / "checkpoint.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format_version": 99}))
    with pytest.raises(ConfigError, match="none of the 1 checkpoints is whole"):
        store.latest()


def test_the_record_of_a_checkpoint_is_refused_with_any_byte_cut_or_flipped(tmp_path):
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    folder = save(store, *model_and_optimizer(seed=1), 1)
    record = tmp_path / "run" / folder / "checkpoint.json"
    content = record.read_bytes()
    for place in range(len(content)):
        for spoilt in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
            record.write_bytes(spoilt)
            try:
                found = json.loads(spoilt)
            except ValueError:
                found = None
            if found == json.loads(content):
                continue  # white space
            with pytest.raises(DamagedError):
                store.open(folder)
    record.write_bytes(content)
    assert store.open(folder).position.step == 1


def test_tensors_with_any_byte_cut_or_flipped_are_refused(tmp_path):
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    folder = save(store, *model_and_optimizer(seed=1), 1)
    rng = random.Random(0)
    for name in ("model.safetensors", "state.safetensors"):
        path = tmp_path / "run" / folder / name
        content = path.read_bytes()
        for place in (0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(10))):
            for spoilt in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
                path.write_bytes(spoilt)
                with pytest.raises(DamagedError, match=name):
                    store.open(folder)
        path.write_bytes(content)
    assert store.open(folder).position.step == 1


def test_a_writer_that_ends_at_any_point_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path / "run"))
    store = CheckpointStore(storage, CheckpointConfig(keep_last=1))
    clip, optimizer = model_and_optimizer(seed=1)
    save(store, clip, optimizer, 1)

    class EndError(Exception):
        pass

    done = {"calls": 0, "allowed": 0}

    def counted(method):
        def call(*arguments):
            done["calls"] += 1
            if done["calls"] > done["allowed"]:
                raise EndError
            return method(*arguments)

        return call

    for name in ("write", "new_file", "delete"):
        monkeypatch.setattr(storage, name, counted(getattr(storage, name)))
    for allowed in range(20):
        done.update(calls=0, allowed=allowed)
        try:
            save(store, clip, optimizer, 2)
        except EndError:
            assert store.latest().position.step == (1 if allowed < 3 else 2), allowed  # two files, then the record
        else:
            break
    assert allowed > 4
    store.remove_unfinished(after_step=2)
    assert {item.path.split("/")[1] for item in storage.list("checkpoints/")} == {"step_00000002"}


def test_the_best_are_kept_besides_the_last(tmp_path):
    config = CheckpointConfig(keep_last=1, keep_best=2, best_metric="loss", best_is="lowest")
    store = CheckpointStore(open_storage(str(tmp_path / "run")), config)
    clip, optimizer = model_and_optimizer(seed=1)
    for step, metrics in enumerate(({"loss": 3.0}, {"loss": 1.0}, {}, {"loss": 2.0}, {"loss": 5.0}, {}), start=1):
        save(store, clip, optimizer, step, **metrics)
    folders = {item.path.split("/")[1] for item in store.storage.list("checkpoints/")}
    assert folders == {"step_00000002", "step_00000004", "step_00000006"}
    assert store.latest().position.step == 6


def test_the_files_of_a_checkpoint_may_be_read_by_whom_new_files_may_be_read_by(tmp_path):
    (tmp_path / "new").touch()
    save(CheckpointStore(open_storage(str(tmp_path / "run"))), *model_and_optimizer(seed=1), 1)
    modes = {path.stat().st_mode for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path):
    store = CheckpointStore(open_storage(str(tmp_path / "run")), CheckpointConfig(keep_last=2))
    save(store, *model_and_optimizer(seed=1), 1)
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
    shutil.rmtree(tmp_path / "run")


def test_a_process_without_ray_or_an_installed_rayclip_can_save(tmp_path, monkeypatch):
    def version_of(name):
        if name in ("ray", "rayclip"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("training.checkpoint.store.version", version_of)
    store = CheckpointStore(open_storage(str(tmp_path)), CheckpointConfig())
    save(store, *model_and_optimizer(seed=1, steps=0), 1)
    assert store.latest().packages == {"torch": "1.0", "numpy": "1.0"}

"""Where a run goes on: by its name, from an address, or not at all; and with which settings."""

import shutil

import pytest
from safetensors.torch import load_file

from pipeline.errors import ConfigError
from tests.support.runs import ALONE, config_of, exact_rows
from training.run_plan import plan_run
from training.trainer import train


def test_a_name_that_has_checkpoints_is_refused_where_nothing_shall_be_resumed(data_set, tmp_path):
    config = config_of(data_set, tmp_path, "run.resume=never")
    train(config, ALONE)
    with pytest.raises(ConfigError, match=r"run\.resume=never: run\.name=debug_cpu has checkpoints already.*step_00000012"):
        train(config, ALONE)


@pytest.mark.parametrize("address", ["debug_cpu", "debug_cpu/checkpoints/step_00000008"])
def test_a_new_run_starts_from_the_checkpoint_of_another_and_equals_it(data_set, tmp_path, address, capsys):
    train(config_of(data_set, tmp_path, "checkpoint.every_steps=8"), ALONE)
    last = load_file(tmp_path / "debug_cpu/checkpoints/step_00000012/model.safetensors")
    if address == "debug_cpu":
        shutil.rmtree(tmp_path / "debug_cpu" / "checkpoints" / "step_00000012")
    branch = config_of(data_set, tmp_path, "run.name=branch", f"run.resume={tmp_path / address}", "checkpoint.every_steps=3")
    capsys.readouterr()
    train(branch, ALONE)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line == f"run 'branch' resumes from {tmp_path}/debug_cpu/checkpoints/step_00000008, 256 samples seen"
    assert exact_rows(tmp_path, "branch") == exact_rows(tmp_path)[8:]
    other = load_file(tmp_path / "branch/checkpoints/step_00000012/model.safetensors")
    assert all((value == other[key]).all() for key, value in last.items())
    shutil.rmtree(tmp_path / "debug_cpu")  # the branch has checkpoints of its own, and needs the other no more
    assert plan_run(branch).start.step == 12
    with pytest.raises(ConfigError, match=r"run\.resume=.*elsewhere: run\.name=branch has checkpoints already"):
        plan_run(config_of(data_set, tmp_path, "run.name=branch", f"run.resume={tmp_path}/elsewhere"))


def test_an_address_without_a_whole_checkpoint_is_refused(data_set, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.resume=.*nothing: holds no checkpoint"):
        plan_run(config_of(data_set, tmp_path, f"run.resume={tmp_path}/nothing"))
    train(config_of(data_set, tmp_path), ALONE)
    folder = tmp_path / "debug_cpu" / "checkpoints" / "step_00000012"
    (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"run\.resume=.*step_00000012: is damaged \(state\.safetensors"):
        plan_run(config_of(data_set, tmp_path, "run.name=branch", f"run.resume={folder}"))


def test_other_settings_are_shown_and_refused_unless_allowed(data_set, tmp_path, capsys):
    train(config_of(data_set, tmp_path), ALONE)
    changes = ("optimizer.learning_rate=1e-4", "train.max_steps=14", "data.crop_scale_min=0.5")
    with pytest.raises(ConfigError) as error:
        plan_run(config_of(data_set, tmp_path, *changes))
    lines = str(error.value).splitlines()
    assert "was trained with other settings" in lines[0]
    assert [line.strip() for line in lines[1:-1]] == [
        "data.crop_scale_min: 0.9 -> 0.5",
        "train.max_steps: 12 -> 14",
        "optimizer.learning_rate: 0.001 -> 0.0001",
    ]
    assert "run.allow_config_changes=true" in lines[-1]
    capsys.readouterr()
    result = train(config_of(data_set, tmp_path, *changes, "run.allow_config_changes=true"), ALONE)
    assert result.step == 14
    assert "changed: optimizer.learning_rate: 0.001 -> 0.0001" in capsys.readouterr().out


def test_what_the_result_does_not_depend_on_changes_without_a_word(data_set, tmp_path):
    train(config_of(data_set, tmp_path), ALONE)
    free = (
        "cluster.num_workers=3",
        "train.micro_batch_size=4",
        "train.log_every_steps=5",
        "data.prefetch_batches=1",
        "checkpoint.keep_last=1",
        "tracking.wandb_mode=offline",
        "train.hang_timeout_s=5",
        "train.on_non_finite=skip",
    )
    assert plan_run(config_of(data_set, tmp_path, *free)).start.step == 12


def test_all_checkpoints_damaged_is_never_a_silent_fresh_start(data_set, tmp_path):
    train(config_of(data_set, tmp_path), ALONE)
    for path in (tmp_path / "debug_cpu" / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="none of the 2 checkpoints is whole"):
        train(config_of(data_set, tmp_path), ALONE)

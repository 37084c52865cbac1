"""The loop in a bare process: what it records, how it resumes, what it refuses."""

import json
import math

import pytest
import torch

from jobs.config import Config, load_config
from pipeline.manifest import ManifestError
from pipeline.storage import open_storage
from training.config import ConfigError
from training.distributed import World
from training.plan import plan_run
from training.tracking import read_metrics
from training.trainer import Trainer, train

ALONE = World(rank=0, world_size=1, device=torch.device("cpu"))
EXACT = ("step", "samples_seen", "epoch", "loss", "loss_image_to_text", "loss_text_to_image", "logit_scale", "temperature",
         "learning_rate", "grad_norm", "batch_accuracy_image_to_text", "batch_accuracy_text_to_image", "skipped_samples",
         "batch_fingerprint")  # fmt: skip


def config_of(data_set: str, folder, *overrides: str) -> Config:
    return load_config("debug_cpu", [f"data.uri={data_set}", f"run.dir={folder}", "train.max_steps=12", *overrides])


def losses(folder, name="debug_cpu"):
    rows = read_metrics(folder / name / "metrics.jsonl")
    return [[row[key] for key in EXACT] for row in rows if "loss" in row]


class KilledError(Exception):
    pass


def kill_after(monkeypatch, step):
    """The process dies after that step, before anything else is written."""
    after = Trainer._after_step

    def dying(self):
        after(self)
        if self.position.step == step:
            raise KilledError

    monkeypatch.setattr(Trainer, "_after_step", dying)


def test_a_run_learns_and_records_every_promised_number(data_set, tmp_path):
    result = train(config_of(data_set, tmp_path, "train.max_steps=30", "optimizer.learning_rate=2e-3"), ALONE)
    rows = read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    promised = {*EXACT, "samples_per_s", "data_wait_share"}
    assert all(promised == set(row) for row in rows)
    assert rows[0]["loss"] == pytest.approx((rows[0]["loss_image_to_text"] + rows[0]["loss_text_to_image"]) / 2)
    assert rows[0]["temperature"] == pytest.approx(0.07)
    assert rows[0]["logit_scale"] == pytest.approx(math.log(1 / 0.07))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["samples_seen"] == result.samples_seen == 30 * 32
    stored = json.loads((tmp_path / "debug_cpu" / "result.json").read_text())
    assert stored["step"] == 30
    assert stored["checkpoint"] == "checkpoints/step_00000030"


def test_the_stored_configuration_repeats_the_run(data_set, tmp_path):
    train(config_of(data_set, tmp_path), ALONE)
    recipe = str(tmp_path / "debug_cpu" / "config.yaml")
    again = load_config(recipe, ["run.name=again"])
    train(again, ALONE)
    assert losses(tmp_path, "again") == losses(tmp_path)


@pytest.mark.parametrize("micro_batch_size", [5, 32, "auto"])
def test_the_losses_do_not_depend_on_the_micro_batch(data_set, tmp_path, micro_batch_size):
    train(config_of(data_set, tmp_path / "whole"), ALONE)
    train(config_of(data_set, tmp_path / "parts", f"train.micro_batch_size={micro_batch_size}"), ALONE)
    whole, parts = (
        [row["loss"] for row in read_metrics(tmp_path / part / "debug_cpu" / "metrics.jsonl")] for part in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_the_sigmoid_loss_learns_its_bias_and_is_evaluated_and_resumed(data_set, tmp_path):
    overrides = ("train.loss=sigmoid", f"evaluation.retrieval_uri={data_set}")
    train(config_of(data_set, tmp_path, *overrides), ALONE)
    result = train(config_of(data_set, tmp_path, *overrides, "train.max_steps=24"), ALONE)
    rows = [row for row in read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 24
    assert rows[0]["logit_scale"] == pytest.approx(math.log(10))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["batch_accuracy_image_to_text"] >= 0
    assert "batch_accuracy_text_to_image" not in rows[0], "a loss without columns has none"
    assert result.evaluation
    with pytest.raises(ConfigError, match=r"train\.loss=contrastive \(it has sigmoid\)"):
        plan_run(config_of(data_set, tmp_path))


def test_batch_norm_on_several_ranks_is_said_and_its_synchronisation_refused_without_a_gpu(data_set, tmp_path, caplog):
    overrides = ("model.name=debug-rn", "train.max_steps=2", "optimizer.warmup_steps=0")
    train(config_of(data_set, tmp_path, *overrides, "train.micro_batch_size=8"), ALONE)
    assert "debug-rn with train.micro_batch_size=8: batch norm sees a part of the batch" in caplog.text
    with pytest.raises(ConfigError, match=r"train\.sync_batch_norm=True: debug-rn on train\.device=cpu"):
        plan_run(config_of(data_set, tmp_path, *overrides, "train.sync_batch_norm=true"))


@pytest.mark.parametrize("killed_at", [3, 5, 8])
def test_a_killed_run_resumes_at_the_exact_sample_and_repeats_no_step(data_set, tmp_path, monkeypatch, killed_at, capsys):
    config = config_of(data_set, tmp_path / "undisturbed", "checkpoint.every_steps=5")
    train(config, ALONE)
    config = config_of(data_set, tmp_path / "killed", "checkpoint.every_steps=5")
    with monkeypatch.context() as patch:
        kill_after(patch, killed_at)
        with pytest.raises(KilledError):
            train(config, ALONE)
    capsys.readouterr()
    train(config, ALONE)
    first_line = capsys.readouterr().out.splitlines()[0]
    expected = "resumes from checkpoints/step_00000005, 160 samples seen" if killed_at >= 5 else "starts"
    assert first_line == f"run 'debug_cpu' {expected}"
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    weights = [tmp_path / name / "debug_cpu/checkpoints/step_00000012/model.safetensors" for name in ("killed", "undisturbed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_finished_run_has_nothing_left_to_do(data_set, tmp_path):
    config = config_of(data_set, tmp_path, f"evaluation.retrieval_uri={data_set}")
    result = train(config, ALONE)
    before = (tmp_path / "debug_cpu" / "metrics.jsonl").read_bytes()
    assert train(config, ALONE) == result
    assert (tmp_path / "debug_cpu" / "metrics.jsonl").read_bytes() == before


def test_a_run_stopped_after_its_last_checkpoint_still_reports_and_logs_nothing_twice(data_set, tmp_path):
    config = config_of(data_set, tmp_path, f"evaluation.retrieval_uri={data_set}")
    result = train(config, ALONE)
    folder = tmp_path / "debug_cpu"
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "result.json").unlink()
    again = train(config, ALONE)
    assert again.evaluation == result.evaluation
    assert again.checkpoint == result.checkpoint
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert (folder / "result.json").exists()


def test_evaluation_runs_during_and_after_training(data_set, tmp_path):
    zero_shot = f"{{uri: {data_set}, label_column: shape, templates: ['a red {{}}', 'a blue {{}}']}}"
    config = config_of(
        data_set,
        tmp_path,
        f"evaluation.retrieval_uri={data_set}",
        "evaluation.every_steps=5",
        f"evaluation.zero_shot={zero_shot}",
    )
    result = train(config, ALONE)
    rows = [row for row in read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl") if "loss" not in row]
    assert [row["step"] for row in rows] == [5, 10, 12]
    recall = {f"evaluation/{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert set(rows[0]) == {"step", *recall, *(f"evaluation/zero_shot_{name}" for name in ("top1", "top5", "chance"))}
    assert result.evaluation["evaluation/zero_shot_chance"] == 0.25
    assert all(0 <= value <= 1 for value in result.evaluation.values())


def test_a_run_in_object_storage_leaves_its_record_there(data_set, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = config_of(data_set, f"{bucket}/runs", "checkpoint.every_steps=5")
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(KilledError):
            train(config, ALONE)
    storage = open_storage(f"{bucket}/runs/debug_cpu")
    assert len(storage.read("metrics.jsonl").splitlines()) == 5, "as far as the checkpoint, at least"
    for path in (tmp_path / "rayclip").rglob("metrics.jsonl"):
        path.unlink()  # another node goes on
    train(config, ALONE)
    rows = [json.loads(line) for line in storage.read("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))


def test_a_resume_into_other_samples_or_another_model_is_refused(data_set, make_data_set, tmp_path):
    config = config_of(data_set, tmp_path)
    train(config, ALONE)
    for override, named in (
        ("train.seed=9", r"seed=9 \(the checkpoint has 0\)"),
        ("train.global_batch_size=16", "global_batch_size=16"),
        ("data.num_streams=1", "num_streams=1"),
        ("model.name=debug-rn", r"model.name=debug-rn \(it has debug-vit\)"),
    ):
        with pytest.raises(ConfigError, match=named):
            plan_run(config_of(data_set, tmp_path, override))
    other = make_data_set(str(tmp_path / "other"), seed=3)
    with pytest.raises(ConfigError, match=r"choose another run\.name"):
        plan_run(config_of(other, tmp_path))


def test_a_run_keeps_its_version_of_a_growing_data_set(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (40,))
    config = config_of(uri, tmp_path)
    train(config, ALONE)
    make_data_set(uri, (40,), seed=2)
    assert plan_run(config).data_sets[0].manifest.version == 1
    fresh = config_of(uri, tmp_path, "run.name=fresh")
    assert plan_run(fresh).data_sets[0].manifest.version == 2


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.uri="], ConfigError, r"data\.uri: is empty"),
        (["data.uri=/nowhere"], ManifestError, "there is no data set"),
        (["train.global_batch_size=4000"], ConfigError, r"4000 is more than the data set's 64 samples"),
        (["data.version=5"], ManifestError, r"data\.version=5"),
        (["optimizer.warmup_steps=12"], ConfigError, r"optimizer\.warmup_steps=12"),
        (["cluster.num_workers=33"], ConfigError, r"cluster\.num_workers=33"),
        (["evaluation.retrieval_uri=/nowhere"], ManifestError, "there is no data set"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(data_set, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        plan_run(config_of(data_set, tmp_path, *overrides))
    assert not (tmp_path / "debug_cpu").exists()

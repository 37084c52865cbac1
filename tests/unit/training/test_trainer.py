"""The loop in a bare process: what it records, how it resumes, what it refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from jobs.cli.config import load_config
from model.clip import CLIP, build_clip
from model.config import get_architecture
from model.weights import save_weights
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.runs import ALONE, EXACT, config_of, exact_rows
from training.evaluation.runner import evaluate
from training.record.tracking import read_metrics
from training.run_plan import plan_run
from training.trainer import Trainer, train

losses = exact_rows


def same_weights(one, other, file="model.safetensors", other_file=None):
    """Whether the last checkpoints of two runs hold the same tensors."""
    checkpoint = "debug_cpu/checkpoints/step_00000012"
    left, right = (load_file(run / checkpoint / name) for run, name in ((one, file), (other, other_file or file)))
    return list(left) == list(right) and all(torch.equal(value, right[key]) for key, value in left.items())


class KilledError(Exception):
    pass


def kill_after(monkeypatch, step):
    """The process dies after that step, when the checkpoint before it is there."""
    after = Trainer._after_step

    def dying(self):
        after(self)
        if self.position.step == step:
            self._writer.wait()
            raise KilledError

    monkeypatch.setattr(Trainer, "_after_step", dying)


def test_a_run_learns_and_records_every_promised_number(data_set, tmp_path):
    result = train(config_of(data_set, tmp_path, "train.max_steps=30", "optimizer.learning_rate=2e-3"), ALONE)
    rows = read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    times = {"data_wait_s", "compute_s", "communication_s"}
    account = {"time", "train_s", "evaluation_s", "checkpoint_s", "goodput"}
    promised = {
        *EXACT,
        "loss_scale",
        "overflowed_steps",
        "samples_per_s",
        "data_wait_share",
        *times,
        *(f"slowest_{name}" for name in times),
        *account,
    }
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


def test_patch_dropout_is_the_same_in_any_micro_batch_and_after_a_kill(data_set, tmp_path, monkeypatch):
    overrides = ("train.patch_dropout=0.5", "checkpoint.every_steps=5")
    train(config_of(data_set, tmp_path / "whole", *overrides), ALONE)
    train(config_of(data_set, tmp_path / "parts", *overrides, "train.micro_batch_size=5"), ALONE)
    with monkeypatch.context() as patch:
        kill_after(patch, 8)
        with pytest.raises(KilledError):
            train(config_of(data_set, tmp_path / "killed", *overrides), ALONE)
    train(config_of(data_set, tmp_path / "killed", *overrides), ALONE)
    train(config_of(data_set, tmp_path / "without"), ALONE)
    whole, parts, killed, without = (losses(tmp_path / part) for part in ("whole", "parts", "killed", "without"))
    assert killed == whole
    assert [row[3] for row in parts] == pytest.approx([row[3] for row in whole], rel=1e-4)
    assert [row[3] for row in without] != pytest.approx([row[3] for row in whole], rel=1e-3)


def test_the_average_is_evaluated_resumed_and_offered(data_set, tmp_path, monkeypatch):
    overrides = ("train.ema_decay=0.9", "checkpoint.every_steps=5", f"evaluation.retrieval_uri={data_set}")
    result = train(config_of(data_set, tmp_path / "whole", *overrides), ALONE)
    with monkeypatch.context() as patch:
        kill_after(patch, 8)
        with pytest.raises(KilledError):
            train(config_of(data_set, tmp_path / "killed", *overrides), ALONE)
    again = train(config_of(data_set, tmp_path / "killed", *overrides), ALONE)
    assert again.evaluation == result.evaluation
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert same_weights(tmp_path / "killed", tmp_path / "whole", "average.safetensors")
    assert not same_weights(tmp_path / "whole", tmp_path / "whole", "average.safetensors", "model.safetensors")
    plan = plan_run(config_of(data_set, tmp_path / "whole", *overrides))
    clip = CLIP(plan.architecture).eval()
    plan.checkpoint.restore_weights(clip)
    assert evaluate(clip, plan.config.evaluation, ALONE) == result.evaluation


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_a_run_starts_from_the_weights_of_another_size_with_one_encoder_locked(data_set, tmp_path, name):
    start = build_clip(name)
    torch.save({"state_dict": start.state_dict()}, tmp_path / "start.pt")
    size = start.architecture.image_size_px * 2
    overrides = (
        f"model.name={name}",
        f"model.weights={tmp_path / 'start.pt'}",
        "model.activation=quick_gelu",
        f"model.image_size_px={size}",
        "model.lock=[image]",
        "train.max_steps=6",
    )
    train(config_of(data_set, tmp_path, *overrides), ALONE)
    plan = plan_run(config_of(data_set, tmp_path, *overrides))
    trained = CLIP(plan.architecture)
    assert trained.architecture.image_size_px == size
    plan.checkpoint.restore_weights(trained)
    assert torch.equal(trained.visual.conv1.weight, start.visual.conv1.weight)
    assert not torch.equal(trained.text_projection, start.text_projection)
    (tmp_path / "start.pt").unlink()  # a run that has begun needs it no more
    longer = ("train.max_steps=8", "run.allow_config_changes=true")
    train(config_of(data_set, tmp_path, *overrides, *longer), ALONE)
    with pytest.raises(ConfigError, match=r"model\.lock=\[\] \(it has \['image'\]\)"):
        plan_run(config_of(data_set, tmp_path, *overrides, "model.lock=[]"))


def test_weights_whose_activation_nobody_states_are_refused(data_set, tmp_path):
    torch.save(build_clip("debug-vit").state_dict(), tmp_path / "start.pt")
    with pytest.raises(ConfigError, match=r"model\.activation: .*start\.pt does not say"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={tmp_path / 'start.pt'}"))
    overrides = (f"model.weights={tmp_path / 'start.pt'}", "model.name=debug-rn", "model.activation=quick_gelu")
    with pytest.raises(ConfigError, match=r"model\.weights=.*does not fit debug-rn"):
        plan_run(config_of(data_set, tmp_path, *overrides))
    save_weights(CLIP(replace(get_architecture("debug-vit"), has_logit_bias=True)), tmp_path / "sigmoid.safetensors")
    with pytest.raises(ConfigError, match=r"were trained with train\.loss=sigmoid; set it"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={tmp_path / 'sigmoid.safetensors'}"))


def test_weights_come_from_object_storage_and_state_their_activation(data_set, bucket, tmp_path):
    clip = CLIP(replace(get_architecture("debug-vit"), activation="gelu"))
    save_weights(clip, tmp_path / "start.safetensors")
    open_storage(f"{bucket}/weights").write_file("start.safetensors", tmp_path / "start.safetensors")
    config = config_of(data_set, tmp_path, f"model.weights={bucket}/weights/start.safetensors")
    assert plan_run(config).architecture.activation == "gelu"
    assert torch.equal(Trainer(plan_run(config), ALONE).clip.text_projection, clip.text_projection)
    with pytest.raises(ConfigError, match=r"model\.weights=s3://.*/none\.pt: there is no such object"):
        plan_run(config_of(data_set, tmp_path, f"model.weights={bucket}/weights/none.pt"))


def test_the_sigmoid_loss_learns_its_bias_and_is_evaluated_and_resumed(data_set, tmp_path):
    overrides = ("train.loss=sigmoid", f"evaluation.retrieval_uri={data_set}")
    train(config_of(data_set, tmp_path, *overrides), ALONE)
    longer = ("train.max_steps=24", "run.allow_config_changes=true")
    result = train(config_of(data_set, tmp_path, *overrides, *longer), ALONE)
    rows = [row for row in read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 24
    assert rows[0]["logit_scale"] == pytest.approx(math.log(10))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["batch_accuracy_image_to_text"] >= 0
    assert "batch_accuracy_text_to_image" not in rows[0], "a loss without columns has none"
    assert result.evaluation
    with pytest.raises(ConfigError, match=r"train\.loss=contrastive \(it has sigmoid\)"):
        plan_run(config_of(data_set, tmp_path))


def test_batch_norm_that_sees_a_part_of_the_batch_is_said_and_stays_near(data_set, tmp_path, caplog):
    overrides = ("model.name=debug-rn", "train.max_steps=4", "optimizer.warmup_steps=0", "train.device=auto")
    train(config_of(data_set, tmp_path / "whole", *overrides, "train.micro_batch_size=32"), ALONE)
    assert "batch norm" not in caplog.text, "a micro-batch that holds the whole slice is none"
    train(config_of(data_set, tmp_path / "parts", *overrides, "train.micro_batch_size=8"), ALONE)
    assert "debug-rn with train.micro_batch_size=8: batch norm sees a part of the batch" in caplog.text
    whole, parts = ([row[3] for row in losses(tmp_path / part)] for part in ("whole", "parts"))
    assert parts != pytest.approx(whole, rel=1e-4), "what holds for ViTs is not claimed for batch norm"
    assert parts == pytest.approx(whole, rel=0.05)


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
    assert same_weights(tmp_path / "killed", tmp_path / "undisturbed")


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
    recall = {f"{way}_{what}" for way in ("image_to_text", "text_to_image") for what in ("r1", "r5", "r10", "median_rank")}
    measured = {*recall, *(f"zero_shot_{name}" for name in ("top1", "top5", "mean_per_class"))}
    bounds = {f"evaluation_bounds/{name}_{bound}" for name in measured for bound in ("low", "high", "chance")}
    notes = {f"evaluation_notes/{name}" for name in recall}  # of the captions that several images have
    values = {"evaluation/zero_shot_chance", *(f"evaluation/{name}" for name in measured)}
    assert set(rows[0]) == {"step", *values, *bounds, *notes}
    assert result.evaluation["evaluation/zero_shot_chance"] == 0.25
    assert all(0 <= value <= 1 for name, value in result.evaluation.items() if name in values and "median_rank" not in name)
    for name in measured:
        low, high = (result.evaluation[f"evaluation_bounds/{name}_{bound}"] for bound in ("low", "high"))
        assert low <= result.evaluation[f"evaluation/{name}"] <= high


def test_a_run_in_object_storage_leaves_its_record_there(data_set, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = config_of(data_set, f"{bucket}/runs", "checkpoint.every_steps=5")
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(KilledError):
            train(config, ALONE)
    storage = open_storage(f"{bucket}/runs/debug_cpu")
    steps = [json.loads(line)["step"] for line in storage.read("metrics.jsonl").splitlines()]
    assert steps[:5] == [1, 2, 3, 4, 5], "as far as the checkpoint, at least; it is put beside steps that go on"
    assert steps == list(range(1, len(steps) + 1))
    for path in (tmp_path / "rayclip").rglob("metrics.jsonl"):
        path.unlink()  # another node goes on
    train(config, ALONE)
    rows = [json.loads(line) for line in storage.read("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))


def test_sigmoid_loss_on_other_weights_begins_with_its_own_temperature(data_set, tmp_path):
    start = build_clip("debug-vit")
    with torch.no_grad():
        start.logit_scale.fill_(math.log(100))
    save_weights(start, tmp_path / "start.safetensors")
    config = config_of(data_set, tmp_path, f"model.weights={tmp_path / 'start.safetensors'}", "train.loss=sigmoid")
    clip = Trainer(plan_run(config), ALONE).clip.requires_grad_(False)
    assert (float(clip.logit_scale), float(clip.logit_bias)) == pytest.approx((math.log(10), -10))
    assert torch.equal(clip.text_projection, start.text_projection)

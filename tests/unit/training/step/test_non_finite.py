"""Non-finite values stop the run or are skipped, never reach the weights, and are traced to their samples."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import ALONE, config_of, exact_rows
from training.distributed import World
from training.record.tracking import read_metrics
from training.run_plan import plan_run
from training.step.loss_scale import LossScale
from training.step.non_finite import DivergedError, Guard
from training.trainer import Trainer, train


def spoil(monkeypatch, step, rows):
    """Makes the images of some samples of one step NaN, and notes the samples' keys."""
    inputs, keys = Trainer._inputs, []

    def spoilt(self, batch):
        images, *rest = inputs(self, batch)
        if self.position.step + 1 == step:
            images = images.float()
            images[rows] = torch.nan
            keys.extend(batch.keys[row] for row in rows)
        return images, *rest

    monkeypatch.setattr(Trainer, "_inputs", spoilt)
    return keys


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_run_with_a_non_finite_loss_names_the_step_the_rank_and_the_samples(data_set, tmp_path, monkeypatch, log_every):
    keys = spoil(monkeypatch, step=7, rows=[3, 5])
    config = config_of(data_set, tmp_path, "checkpoint.every_steps=3", f"train.log_every_steps={log_every}")
    with pytest.raises(DivergedError) as error:
        train(config, ALONE)
    message = str(error.value)
    assert message.startswith("step 7: loss or gradient is non-finite")
    assert f"rank 0: 2 of 32 samples ({keys[0]}, {keys[1]})" in message
    assert "its last checkpoint is checkpoints/step_00000006. Lower optimizer.learning_rate" in message
    kept = plan_run(config).checkpoint
    assert kept.position.step == 6
    assert all(torch.isfinite(value).all() for value in load_file(f"{kept.address}/model.safetensors").values())


@pytest.mark.parametrize("model", ["debug-vit", "debug-rn"])
def test_a_skipped_step_leaves_no_trace_in_weights_moments_and_statistics(data_set, tmp_path, monkeypatch, model):
    overrides = (f"model.name={model}", "train.on_non_finite=skip", "optimizer.max_grad_norm=1", "train.ema_decay=0.9")
    spoil(monkeypatch, step=5, rows=[0])
    result = train(config_of(data_set, tmp_path, *overrides), ALONE)
    assert result.step == 12
    rows = read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows] == [0] * 4 + [1] * 8
    assert rows[4]["loss"] is None
    assert all(row["loss"] > 0 for row in rows if row["step"] != 5)
    for name in ("model", "average", "state"):
        tensors = load_file(tmp_path / f"debug_cpu/checkpoints/step_00000012/{name}.safetensors")
        assert all(torch.isfinite(value.float()).all() for value in tensors.values())
        for key, value in tensors.items():
            if key.endswith("/step"):
                assert value == 11, "the optimizer has not counted it"


def test_the_count_of_skipped_steps_survives_a_resume_and_is_limited(data_set, tmp_path, monkeypatch):
    overrides = ("train.on_non_finite=skip", "train.max_skipped_steps=1", "checkpoint.every_steps=6")
    with monkeypatch.context() as patch:
        spoil(patch, step=5, rows=[0])
        after = Trainer._after_step

        def stopping(self):
            after(self)
            self._stops |= self.position.step == 6

        patch.setattr(Trainer, "_after_step", stopping)
        assert not train(config_of(data_set, tmp_path, *overrides), ALONE).finished
    spoil(monkeypatch, step=9, rows=[0])
    with pytest.raises(DivergedError, match=r"step 9: .*train\.max_skipped_steps=1"):
        train(config_of(data_set, tmp_path, *overrides), ALONE)
    assert exact_rows(tmp_path)[-1][-2] == 1


def test_a_rate_that_blows_the_weights_up_is_not_blamed_on_samples_that_are_fine(data_set, tmp_path):
    config = config_of(data_set, tmp_path, "optimizer.learning_rate=1e4", "checkpoint.every_steps=3")
    with pytest.raises(DivergedError, match=r"step \d+: loss or gradient is non-finite \("):
        train(config, ALONE)
    kept = plan_run(config).checkpoint
    for value in load_file(f"{kept.address}/model.safetensors").values() if kept else ():
        assert torch.isfinite(value).all()


def test_a_rank_that_waits_for_its_device_is_not_taken_to_hang():
    world = World(rank=0, world_size=1, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    guard = Guard(optimizer, world, LossScale(world.device, enabled=False))
    guard.arm(1, torch.tensor(torch.inf), torch.tensor(1.0), [])
    seen = []
    pending = replace(guard._pending, arrived=lambda: seen.append(world.communication.is_waiting))  # in place of a CUDA event
    guard._pending = pending
    assert guard.settle() == 1
    assert (seen, world.communication.is_waiting) == ([True], False)

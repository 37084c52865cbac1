"""Behaviour that needs a GPU: bfloat16, pinned batches, NCCL, Ray's GPU workers. One device is enough.

Ranks are forced to communicate: DDP with its hook, the gathers and the reduce-scatter run over NCCL although there is one rank.

pytest -m gpu tests/gpu
"""

import json

import pytest
import torch
import torch.distributed as dist

from jobs.cli.config import load_config
from jobs.qualification import forced_ranks
from model.clip import build_clip
from training.distributed import World, gather_features, init_world, reduce_scatter
from training.loss import contrastive_loss
from training.record.tracking import read_metrics
from training.trainer import Trainer, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


ALONE = World(0, 1, torch.device("cuda", 0))


@pytest.fixture
def world(tmp_path):
    """One rank that communicates over NCCL."""
    yield init_world(0, 1, f"file://{tmp_path}/meet", torch.device("cuda", 0), timeout_s=60, forced=True)
    dist.destroy_process_group()


def config_of(data_set, folder, *overrides):
    return load_config(
        "debug_cpu", [f"data.uri={data_set}", f"run.dir={folder}", "train.device=auto", "cluster.use_gpu=auto", *overrides]
    )


def losses(folder):
    rows = [row for row in read_metrics(folder / "debug_cpu" / "metrics.jsonl") if "loss" in row]
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn", "ViT-B/32", "RN50"])
def test_features_on_the_gpu_equal_those_on_the_cpu(name):
    torch.manual_seed(0)
    clip = build_clip(name).eval()
    row = clip.architecture
    images = torch.randn(4, 3, row.image_size_px, row.image_size_px)
    texts = torch.randint(1, 1000, (4, row.context_length))
    texts[:, 9] = row.vocab_size - 1  # end of text
    with torch.no_grad():
        expected = clip.encode_image(images, normalize=True), clip.encode_text(texts, normalize=True)
        clip.cuda()
        found = clip.encode_image(images.cuda(), normalize=True), clip.encode_text(texts.cuda(), normalize=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-3)  # TF32 convolutions


def test_the_loss_on_the_gpu_equals_the_cpus(world):
    alone = World(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(64, 32, dtype=torch.float64), dim=-1) for _ in range(2))
    scale = torch.tensor(14.3, dtype=torch.float64)
    expected = contrastive_loss(images, texts, scale, alone, 64, 16).loss
    found = contrastive_loss(images.cuda(), texts.cuda(), scale.cuda(), world, 64, 16).loss
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=0)
    captions = torch.arange(64) % 10
    expected = contrastive_loss(images, texts, scale, alone, 64, 16, captions).loss
    found = contrastive_loss(images.cuda(), texts.cuda(), scale.cuda(), world, 64, 16, captions.cuda()).loss
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", forced_ranks.CASES)
def test_loss_and_gradients_of_a_rank_that_communicates_equal_those_of_one_that_is_alone(world, name):
    loss, gradients = forced_ranks.gradients_of(forced_ranks.CASES[name], world)
    expected, expected_gradients = forced_ranks.gradients_of(forced_ranks.CASES[name], ALONE)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert forced_ranks.relative_difference(other, one) < 1e-4


@pytest.mark.parametrize("size", [7, 8])
def test_nccl_gathers_rows_and_scatters_their_gradients(world, size):
    rows = torch.randn(size, 3, device="cuda", requires_grad=True)
    gathered = gather_features(rows, size, world)
    assert gathered is not rows
    assert torch.equal(gathered, rows)
    weights = torch.randn_like(gathered)
    (gathered * weights).sum().backward()
    assert torch.equal(rows.grad, weights)
    assert torch.equal(reduce_scatter(weights, [(0, size)], world), weights)
    assert world.communication.take() > 0


def test_a_run_that_communicates_equals_one_that_does_not(data_set, tmp_path, world):
    for name, one in (("alone", ALONE), ("forced", world)):
        train(config_of(data_set, tmp_path / name, "train.precision=float32"), one)
    torch.testing.assert_close(losses(tmp_path / "forced"), losses(tmp_path / "alone"), rtol=1e-3, atol=0)


def test_bfloat16_and_float32_runs_learn_alike(data_set, tmp_path, world):
    for precision in ("float32", "bfloat16"):
        train(config_of(data_set, tmp_path / precision, f"train.precision={precision}"), world)
    exact, rough = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert len(exact) == len(rough) == 30
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0)
    assert rough[-1] < rough[0]


def test_a_run_resumes_from_its_checkpoint_on_the_gpu(data_set, tmp_path, world):
    train(config_of(data_set, tmp_path / "whole", "train.precision=float32"), world)
    halves = ("train.precision=float32", "checkpoint.every_steps=10", "checkpoint.keep_last=9")
    train(config_of(data_set, tmp_path / "halves", *halves), world)
    for step in (20, 30):  # as if it had been killed after step 10
        folder = tmp_path / "halves" / "debug_cpu" / "checkpoints" / f"step_{step:08d}"
        (folder / "checkpoint.json").unlink()
    (tmp_path / "halves" / "debug_cpu" / "result.json").unlink()
    train(config_of(data_set, tmp_path / "halves", *halves), world)
    torch.testing.assert_close(losses(tmp_path / "halves"), losses(tmp_path / "whole"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("communicates", [True, False])
@pytest.mark.parametrize("repeats", ["negatives", "positives"])
@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_a_step_that_is_not_logged_never_waits(data_set, tmp_path, world, monkeypatch, name, repeats, communicates):
    """For the device, that is."""
    step = Trainer._step

    def watched(self, batch, loader):
        torch.cuda.set_sync_debug_mode("error" if self.position.step in (4, 5) else "default")
        try:
            step(self, batch, loader)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched)
    dropout = "train.patch_dropout=0.5" if name == "debug-vit" else "train.patch_dropout=0"
    overrides = (f"model.name={name}", "train.log_every_steps=10", "train.ema_decay=0.9", dropout, "optimizer.max_grad_norm=1")
    overrides = (*overrides, f"train.repeated_captions={repeats}")
    config = config_of(data_set, tmp_path, *overrides, "train.max_steps=10")
    assert train(config, world if communicates else ALONE).step == 10


@pytest.mark.parametrize("overrides", [("train.micro_batch_size=5",), ("train.activation_checkpointing=[image,text]",)])
def test_options_that_save_memory_change_no_loss_on_the_gpu(data_set, tmp_path, world, overrides):
    train(config_of(data_set, tmp_path / "whole", "train.precision=float32"), world)
    train(config_of(data_set, tmp_path / "saving", "train.precision=float32", *overrides), world)
    torch.testing.assert_close(losses(tmp_path / "saving"), losses(tmp_path / "whole"), rtol=1e-3, atol=0)


def test_ray_gives_its_worker_the_gpu(data_set, tmp_path):
    ray = pytest.importorskip("ray")
    from training.worker import run_training

    ray.init(address="local", include_dashboard=False, logging_level="ERROR")
    try:
        assert run_training(config_of(data_set, tmp_path, "train.max_steps=5", "optimizer.warmup_steps=1")).step == 5
    finally:
        ray.shutdown()
    assert json.loads((tmp_path / "debug_cpu" / "result.json").read_text())["step"] == 5

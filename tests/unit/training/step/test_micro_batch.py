"""The micro-batch that fits: bytes of a sample, counted without a failed step, against free memory."""

import functools

import pytest
import torch

from model.clip import CLIP, build_clip
from model.config import get_architecture
from tests.support.runs import ALONE
from training.step.micro_batch import _batch_bytes, _container_bytes, resolve_micro_batch_size, sample_bytes, step_bytes
from training.step.model_setup import checkpoint_activations, checkpointing_undone


def test_auto_takes_what_memory_holds_and_the_whole_slice_where_that_fits(monkeypatch):
    clip = build_clip("debug-vit")
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: 1 << 40)
    assert resolve("auto", clip, 512) is None
    bytes_of_one = sample_bytes(clip, ALONE.device, torch.enable_grad)
    weights = sum(parameter.nbytes for parameter in clip.parameters())
    fixed = 3 * weights + _batch_bytes(clip, 512, 512)
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: fixed + int(100 * bytes_of_one / 0.6) + 10)
    assert resolve("auto", clip, 512) == 64
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: 0)
    assert resolve("auto", clip, 512) == 1
    assert (resolve(None, clip, 512), resolve(100, clip, 512), resolve(512, clip, 512)) == (None, 100, None)


def resolve(wish, clip, batch):
    return resolve_micro_batch_size(wish, clip, torch.optim.AdamW(clip.parameters()), ALONE, batch, torch.enable_grad)


def test_gradients_and_moments_that_are_there_already_are_not_counted_twice(monkeypatch):
    clip = build_clip("debug-vit")
    optimizer = torch.optim.AdamW(clip.parameters())
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: 1 << 40)
    _, before = step_bytes(clip, optimizer, ALONE, 2, 8, torch.enable_grad)
    for parameter in clip.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    _, after = step_bytes(clip, optimizer, ALONE, 2, 8, torch.enable_grad)
    assert after - before == 3 * sum(parameter.nbytes for parameter in clip.parameters())
    assert after == 1 << 40


def test_what_a_sample_keeps_is_what_its_graph_holds():
    one = sample_bytes(CLIP(get_architecture("debug-vit")), ALONE.device, torch.enable_grad)
    row = get_architecture("debug-vit")
    tokens = (row.image_size_px // 8) ** 2 + 1 + row.context_length
    at_least = tokens * row.text_width * 4 * 10 * row.text_layers  # float32, ten tensors of a block's width at least
    assert at_least < one < 4 * at_least


def test_what_a_sample_keeps_is_not_the_copies_of_the_weights_in_half_precision():
    clip = build_clip("debug-vit")
    half = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    assert 0.3 < sample_bytes(clip, ALONE.device, half) / sample_bytes(clip, ALONE.device, torch.enable_grad) < 1


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_of_checkpointed_encoders_one_block_is_counted_beside_their_inputs(name):
    clip = build_clip(name)
    whole = sample_bytes(clip, ALONE.device, torch.enable_grad)
    for tower in ("image", "text"):
        checkpoint_activations(clip, tower)
    checkpointed = sample_bytes(clip, ALONE.device, torch.enable_grad)
    with checkpointing_undone(clip) as blocks:
        assert blocks
        assert sample_bytes(clip, ALONE.device, torch.enable_grad) == whole
    assert sample_bytes(clip, ALONE.device, torch.enable_grad) == checkpointed
    assert 0.3 * whole < checkpointed < 0.9 * whole, "of two to four blocks an encoder one is kept"


def test_the_limit_of_a_container_bounds_what_is_available(tmp_path):
    assert _container_bytes(tmp_path) > 1 << 50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert _container_bytes(tmp_path) > 1 << 50
    (tmp_path / "memory.max").write_text("5000\n")
    assert _container_bytes(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("500\n")
    assert _container_bytes(tmp_path) == 0


def test_a_probe_leaves_batch_norm_statistics_alone():
    clip = build_clip("debug-rn")
    before = {name: value.clone() for name, value in clip.named_buffers()}
    sample_bytes(clip, ALONE.device, torch.enable_grad)
    assert all(torch.equal(value, before[name]) for name, value in clip.named_buffers())

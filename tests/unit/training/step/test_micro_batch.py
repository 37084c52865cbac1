"""The micro-batch that fits: bytes of a sample, counted without a failed step, against free memory."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch

from model.clip import build_clip
from tests.support.runs import ALONE
from training.step.micro_batch import (
    FREE_SHARE,
    CaptionLengths,
    KeptBytes,
    _batch_bytes,
    _container_bytes,
    _even_size,
    _kept_bytes,
    count_kept_bytes,
    resolve_micro_batch_size,
    step_bytes,
)
from training.step.model_setup import checkpoint_activations, checkpointing_undone

FULL = CaptionLengths(77, 0.0, 77)


def test_auto_takes_what_memory_holds_and_the_whole_slice_where_that_fits(monkeypatch):
    clip = build_clip("debug-vit")
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: 1 << 40)
    assert resolve("auto", clip, 512) is None
    kept = count_kept_bytes(clip, ALONE.device, torch.enable_grad)
    weights = sum(parameter.nbytes for parameter in clip.parameters())
    fixed = 3 * weights + _batch_bytes(clip, 512, 512)
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: fixed + int(kept.of(200, FULL) / FREE_SHARE) + 10)
    assert resolve("auto", clip, 512) == 176, "three micro-batches of a multiple of eight"
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: 0)
    assert resolve("auto", clip, 512) == 1
    assert (resolve(None, clip, 512), resolve(100, clip, 512), resolve(512, clip, 512)) == (None, 100, None)


def test_micro_batches_are_few_and_even():
    assert _even_size(4096, 3000) == 2048
    assert _even_size(4096, 1365) == 1024, "four: three would need 1366"
    assert _even_size(100, 33) == 32
    assert _even_size(100, 30) == 25, "32 does not fit"
    assert _even_size(7, 3) == 3


def resolve(wish, clip, batch):
    return resolve_micro_batch_size(wish, clip, torch.optim.AdamW(clip.parameters()), ALONE, batch, torch.enable_grad)


def test_gradients_and_moments_that_are_there_already_are_not_counted_twice(monkeypatch):
    clip = build_clip("debug-vit")
    optimizer = torch.optim.AdamW(clip.parameters())
    monkeypatch.setattr("training.step.micro_batch._available_bytes", lambda: 1 << 40)
    _, before = step_bytes(clip, optimizer, ALONE, 2, 8, torch.enable_grad, FULL)
    for parameter in clip.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    _, after = step_bytes(clip, optimizer, ALONE, 2, 8, torch.enable_grad, FULL)
    assert after - before == 3 * sum(parameter.nbytes for parameter in clip.parameters())
    assert after == 1 << 40


def peak_bytes(work):
    """The most bytes that PyTorch's allocator holds at a time, beyond those of before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_what_is_counted_is_what_the_allocator_holds_at_most(name, precision):
    torch.manual_seed(0)
    clip, count = build_clip(name).train(), 48
    row = clip.architecture
    autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")
    for parameter in clip.parameters():
        parameter.grad = torch.zeros_like(parameter)
    lengths = torch.randint(5, 40, (count,))
    texts = torch.zeros(count, row.context_length, dtype=torch.int64)
    texts[torch.arange(count), lengths - 1] = row.vocab_size - 1
    images = torch.zeros(count, row.image_size_px, row.image_size_px, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def work():
        with autocast():
            image_features, text_features, *_ = clip(images, texts)
        (image_features.sum() + text_features.sum()).backward()

    exact = CaptionLengths(float(lengths.double().mean()), 0.0, int(lengths.max()))
    counted = count_kept_bytes(clip, ALONE.device, autocast).of(count, exact)
    assert peak_bytes(work) == pytest.approx(counted, rel=0.15)


def test_captions_of_any_lengths_keep_what_is_foreseen():
    clip = build_clip("debug-vit")
    counted = replace(count_kept_bytes(clip, ALONE.device, torch.enable_grad), gradient=0)
    for lengths in ([5] * 30, [77] * 10, [6, 9, 12, 40, 77, 33, 5]):
        kept, _ = _kept_bytes(clip, lengths, ALONE.device, torch.enable_grad)
        foreseen = counted.of(len(lengths), CaptionLengths(sum(lengths) / len(lengths), 0.0, max(lengths)))
        assert foreseen == pytest.approx(kept, rel=0.03)


def test_lengths_of_captions_have_a_margin_that_shrinks_with_the_batch():
    some = CaptionLengths.of([10, 20, 30], 77)
    assert (some.mean, some.longest) == (20, 77)
    assert some.tokens(1) == pytest.approx(20 + 4 * some.deviation)
    assert some.tokens(10_000) == pytest.approx(200_000, rel=0.02)
    assert CaptionLengths.of([], 77).tokens(3) == 231
    kept = KeptBytes(fixed=1000, pair=10, token=1, place=0.5)
    assert kept.of(kept.fitting(1e6, some), some) <= 1e6 < kept.of(kept.fitting(1e6, some) + 1, some)
    assert kept.fitting(999, some) == 0


def test_what_a_sample_keeps_is_not_the_copies_of_the_weights_in_half_precision():
    clip = build_clip("debug-vit")
    half = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    whole, halved = (count_kept_bytes(clip, ALONE.device, one) for one in (torch.enable_grad, half))
    assert 0.3 < halved.pair / whole.pair < 0.7
    assert 0.3 < halved.token / whole.token < 0.7


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_of_checkpointed_encoders_one_block_is_counted_beside_their_inputs(name):
    clip = build_clip(name)
    whole = count_kept_bytes(clip, ALONE.device, torch.enable_grad)
    for tower in ("image", "text"):
        checkpoint_activations(clip, tower)
    checkpointed = count_kept_bytes(clip, ALONE.device, torch.enable_grad)
    with checkpointing_undone(clip) as blocks:
        assert blocks
        assert count_kept_bytes(clip, ALONE.device, torch.enable_grad) == whole
    assert count_kept_bytes(clip, ALONE.device, torch.enable_grad) == checkpointed
    assert 0.3 * whole.pair < checkpointed.pair < 0.9 * whole.pair, "of two to four blocks an encoder one is kept"


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
    count_kept_bytes(clip, ALONE.device, torch.enable_grad)
    assert all(torch.equal(value, before[name]) for name, value in clip.named_buffers())

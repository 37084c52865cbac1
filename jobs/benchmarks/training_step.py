"""Compares the training step and the loss with open_clip's, in one process, in turns. Needs the `test` extra.

Architecture, weights, batch, captions, threads and precision are the same; open_clip is set up as in its own trainer: padded
captions, torch's AdamW, and its local loss.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from model.clip import CLIP

Step = Callable[[], float]
"""Runs one step of a side. Returns the loss."""

WORDS = [
    *("a", "the", "of", "and", "in", "on", "with", "dog", "cat", "man", "red", "blue", "old", "new", "house", "street", "car"),
    *("beach", "mountain", "photo", "night", "food", "table", "tree", "water", "boat", "bird", "flower", "city", "park"),
    *("snow", "rain", "small", "large", "two", "people", "playing", "holding"),
]


PEAK_BFLOAT16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense FLOPS of the SXM boards, by a part of the device's name (NVIDIA's data sheets)."""


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions as long as those of web data: a median of 12 tokens, special tokens included, and a long tail."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=max(1, round(rng.lognormvariate(2.3, 0.5))))) for _ in range(count)]


@dataclass(frozen=True)
class Setting:
    """Settings of both sides; `compile` is each side's own torch.compile."""

    name: str
    batch_size: int
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpointing: bool = False


def run(setting: Setting, repeats: int, threads: int | None) -> str:
    """Pairs per second of forward, loss, backward and optimizer, ours and open_clip's."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    ours, theirs, texts = _sides(setting)
    lengths = (texts != 0).sum(1)
    where = f"{torch.get_num_threads()} threads" if setting.device == "cpu" else torch.cuda.get_device_name()
    lines = [
        f"{setting.name}, {setting.batch_size} pairs, captions of {int(lengths.median())} tokens in the median and "
        f"{int(lengths.max())} at most, {where}, {setting.precision}" + (", compiled" if setting.compile else "")
    ]
    first = ours(), theirs()
    lines.append(f"loss at step 0: {first[0]:.7f} and {first[1]:.7f}, relative difference {abs(first[0] / first[1] - 1):.1e}")
    flops = {side: _flops(step) for side, step in (("ours", ours), ("open_clip", theirs))} if not setting.compile else {}
    times: dict[str, list[float]] = {"ours": [], "open_clip": []}
    for _ in range(repeats):
        for side, step in (("ours", ours), ("open_clip", theirs)):
            began = time.perf_counter()
            step()  # returns the loss as a float, so a GPU has finished it
            times[side].append(time.perf_counter() - began)
    for side, seconds in times.items():
        line = f"{side:10} {median(seconds):8.4f} s a step {setting.batch_size / median(seconds):10.2f} pairs/s"
        lines.append(line + (_rate(flops[side] / median(seconds), setting) if flops else ""))
    ratios = [b / a for a, b in zip(times["ours"], times["open_clip"], strict=True)]
    lines.append(f"pairs/s, ours over open_clip's: {median(ratios):.2f}x ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    if setting.device == "cuda":
        lines.append(f"peak memory of the device: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB with both sides in it")
    return "\n".join(lines)


def _flops(step: Step) -> int:
    """Floating-point operations of a step's matrix products, convolutions and attention, including those on padding."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _rate(flops_per_s: float, setting: Setting) -> str:
    """FLOPS of the device, and its utilisation (MFU) if its peak is known."""
    import torch

    name = torch.cuda.get_device_name() if setting.device == "cuda" else ""
    peak = next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in name), None)
    known = f", {flops_per_s / peak:.1%} of {peak / 1e12:.0f}" if peak and setting.precision == "bfloat16" else ""
    return f" {flops_per_s / 1e12:8.3f} TFLOP/s{known}"


def _sides(setting: Setting) -> tuple[Step, Step, Any]:
    """(our step, open_clip's step, texts), from the same weights, images and texts."""
    import torch

    from model.clip import build_clip
    from model.tokenizer import tokenize

    torch.manual_seed(0)
    clip = build_clip(setting.name)
    size = clip.architecture.image_size_px
    images = torch.randn(setting.batch_size, 3, size, size, device=setting.device)
    texts = tokenize(captions(setting.batch_size))
    theirs = _their_step(setting, clip, images, texts)
    return _our_step(setting, clip, images, texts), theirs, texts


def _our_step(setting: Setting, clip: CLIP, images: torch.Tensor, texts: torch.Tensor) -> Step:
    import torch

    from training.config import ModelConfig, OptimizerConfig, TrainConfig, TrainingConfig
    from training.distributed import World
    from training.loss import ContrastiveResult, contrastive_loss
    from training.optimizer import build_optimizer, clamp_logit_scale_
    from training.step.gradients import compute_gradients
    from training.step.model_setup import autocast, prepare_model

    world = World(0, 1, torch.device(setting.device))
    train = TrainConfig(
        precision=setting.precision,
        compile=setting.compile,
        activation_checkpointing=("image", "text") if setting.checkpointing else (),
    )
    prepare_model(clip.to(world.device), TrainingConfig(model=ModelConfig(name=setting.name), train=train))
    optimizer = build_optimizer(clip, OptimizerConfig())
    images = images.to(memory_format=torch.channels_last)  # as the loader lays them out; token ids stay on the CPU

    def loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> ContrastiveResult:
        return contrastive_loss(images, texts, scale, world, setting.batch_size, train.loss_tile_size)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        result = compute_gradients(clip, (images, texts), loss, None, lambda: autocast(train, world.device))
        optimizer.step()
        clamp_logit_scale_(clip)
        return float(result.loss.detach())

    return step


def _their_step(setting: Setting, clip: CLIP, images: torch.Tensor, texts: torch.Tensor) -> Step:
    import torch
    from open_clip.loss import ClipLoss

    from jobs.benchmarks.open_clip_peer import build_peer, build_peer_optimizer
    from training.config import OptimizerConfig

    peer = build_peer(clip).to(setting.device)
    optimizer = build_peer_optimizer(peer, OptimizerConfig())
    if setting.checkpointing:
        peer.set_grad_checkpointing()
    forward, loss, texts = torch.compile(peer) if setting.compile else peer, ClipLoss(), texts.to(setting.device)
    lower = setting.precision == "bfloat16"

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(setting.device, dtype=torch.bfloat16, enabled=lower):
            total = loss(*forward(images, texts))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            peer.logit_scale.clamp_(0, 4.6052)
        return float(total.detach())

    return step


# ---------------------------------------------------------------------------------------------------------------- the loss


def run_loss(global_batches: tuple[int, ...], repeats: int) -> str:
    """Peak memory and time of the loss on one of 8 ranks, ours and the plain local one, each in its own process."""
    import json
    import subprocess
    import sys

    lines = [f"the loss of one of 8 ranks, 512 dimensions, float32\n{'global batch':>13}{'ours MB':>10}{'local MB':>10}"
             f"{'share':>8}{'ours s':>9}{'local s':>9}{'time':>7}"]  # fmt: skip
    for size in global_batches:
        found = {}
        for side in ("ours", "local"):
            command = [sys.executable, str(Path(__file__)), side, str(size), str(repeats)]
            root = Path(__file__).parents[2]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        (our_mb, our_s), (local_mb, local_s) = found["ours"], found["local"]
        lines.append(
            f"{size:>13,}{our_mb:>10,.1f}{local_mb:>10,.1f}{our_mb / local_mb:>8.1%}{our_s:>9.3f}{local_s:>9.3f}"
            f"{our_s / local_s:>6.2f}x"
        )
    return "\n".join(lines)


def measure_loss(side: str, size: int, repeats: int) -> tuple[float, float]:
    """Measures forward and backward on size / 8 rows: (peak MB above features and their gradients, median seconds)."""
    import torch
    import torch.nn.functional as F

    from training.loss import _TiledCrossEntropy

    rows = size // 8
    torch.manual_seed(0)
    image_GE, text_GE = (F.normalize(torch.randn(size, 512), dim=-1).requires_grad_() for _ in range(2))
    image_BE, text_BE = (one[:rows].detach().clone().requires_grad_() for one in (image_GE, text_GE))
    scale = torch.tensor(14.3, requires_grad=True)
    leaves = (image_GE, text_GE, image_BE, text_BE, scale)
    gradients_mb = sum(leaf.nbytes for leaf in leaves) / 1e6
    seconds = []
    baseline = 0.0
    for repeat in range(repeats + 1):
        for leaf in leaves:
            leaf.grad = None
        if repeat == 0:
            baseline = _peak_mb(reset=True)
        began = time.perf_counter()
        if side == "ours":
            loss = _TiledCrossEntropy.apply(image_BE, text_GE, scale, 0, 1024)[0]
            loss = (loss + _TiledCrossEntropy.apply(text_BE, image_GE, scale, 0, 1024)[0]) / 2 / rows
        else:
            labels = torch.arange(rows)
            loss = F.cross_entropy(scale * image_BE @ text_GE.T, labels) + F.cross_entropy(scale * text_BE @ image_GE.T, labels)
            loss = loss / 2
        loss.backward()
        if repeat:
            seconds.append(time.perf_counter() - began)
        else:
            peak = _peak_mb() - baseline - gradients_mb
    return peak, median(seconds)


def _peak_mb(reset: bool = False) -> float:
    """Peak memory of this process, in total or since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmRSS" if reset else "VmHWM"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(measure_loss(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

"""Measures memory and time of the loss on one of several ranks, ours and the plain local one.

python jobs/benchmarks/loss_cost.py SIDE GLOBAL_BATCH REPEATS  one side alone, called by benchmark.py loss
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from jobs.benchmarks.peak_memory import peak_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RANKS, TILE = 8, 1024


def run(global_batches: tuple[int, ...], repeats: int) -> str:
    """Peak memory and time of the loss on one of 8 ranks, ours and the plain local one, each in its own process."""
    lines = [f"the loss of one of {RANKS} ranks, 512 dimensions, float32\n{'global batch':>13}{'ours MB':>10}{'local MB':>10}"
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

    rows = size // RANKS
    torch.manual_seed(0)
    features = RankFeatures.random(rows, size, torch.device("cpu"))
    loss = features.tiled_loss if side == "ours" else features.local_loss
    seconds = []
    with peak_memory("cpu") as peak:
        loss(TILE).backward()
    for _ in range(repeats):
        features.forget_gradients()
        began = time.perf_counter()
        loss(TILE).backward()
        seconds.append(time.perf_counter() - began)
    return (peak.bytes - features.gradients_bytes) / 1e6, median(seconds)


@dataclass
class RankFeatures:
    """Features of rank 0 and of all ranks together, as the loss sees them after its gathers, and exp(logit_scale)."""

    image_BE: Tensor
    text_BE: Tensor
    image_GE: Tensor
    text_GE: Tensor
    scale: Tensor

    @staticmethod
    def random(rows: int, global_rows: int, device: torch.device, scale: float = 14.3, width: int = 512) -> RankFeatures:
        import torch
        import torch.nn.functional as F

        image_GE, text_GE = (F.normalize(torch.randn(global_rows, width, device=device), dim=-1) for _ in range(2))
        return _with_gradients(
            image_GE[:rows].clone(), text_GE[:rows].clone(), image_GE, text_GE, torch.tensor(scale).to(device)
        )

    def double(self) -> RankFeatures:
        """A copy in float64."""
        return _with_gradients(*(leaf.detach().double() for leaf in self.leaves))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.image_BE, self.text_BE, self.image_GE, self.text_GE, self.scale

    @property
    def gradients_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)

    def forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def tiled_loss(self, tile: int) -> Tensor:
        """Both directions of our loss over this rank's rows and columns."""
        from training.loss import _TiledCrossEntropy

        images = _TiledCrossEntropy.apply(self.image_BE, self.text_GE, self.scale, 0, tile)[0]
        texts = _TiledCrossEntropy.apply(self.text_BE, self.image_GE, self.scale, 0, tile)[0]
        loss: Tensor = (images + texts) / 2 / len(self.image_BE)
        return loss

    def local_loss(self, _tile: int) -> Tensor:
        """The same by the whole matrix: open_clip's local loss."""
        import torch
        import torch.nn.functional as F

        labels = torch.arange(len(self.image_BE), device=self.scale.device)
        images = F.cross_entropy(self.scale * self.image_BE @ self.text_GE.T, labels)
        return (images + F.cross_entropy(self.scale * self.text_BE @ self.image_GE.T, labels)) / 2


def _with_gradients(*leaves: Tensor) -> RankFeatures:
    return RankFeatures(*(leaf.requires_grad_() for leaf in leaves))


if __name__ == "__main__":
    print(json.dumps(measure_loss(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

"""One rank of the loss tests: computes loss and gradients under DDP for every case and stores rank 0's.

python loss_worker.py RANK WORLD_SIZE FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.distributed import all_reduce_sum, gather_rows, init_world, slice_bounds
from training.loss import contrastive_loss

CASES = {  # name: (global batch, tile)
    "even": (8, 3),
    "uneven": (7, 4),
    "tile of the batch": (8, 8),
    "tile larger than the batch": (9, 100),
    "tile of one": (5, 1),
}


class Towers(nn.Module):
    """Two small encoders with a temperature, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 10)).double()
        self.text = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 10)).double()
        self.logit_scale = nn.Parameter(torch.tensor(2.6593, dtype=torch.float64))

    def forward(self, images, texts):
        normalize = nn.functional.normalize
        return normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1), self.logit_scale.exp()


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return (
        torch.randn(size, 6, generator=generator, dtype=torch.float64),
        torch.randn(size, 5, generator=generator, dtype=torch.float64),
    )


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    world = init_world(rank, world_size, f"file://{folder}/meet-{world_size}", torch.device("cpu"), timeout_s=60)
    results = {}
    for name, (size, tile) in CASES.items():
        model = Towers()
        parallel = DistributedDataParallel(model)
        images, texts = batch(size)
        first, stop = slice_bounds(size, rank, world_size)
        image_features, text_features, scale = parallel(images[first:stop], texts[first:stop])
        result = contrastive_loss(image_features, text_features, scale, world, size, tile)
        result.loss.backward()
        shares = torch.stack([result.loss_image_to_text, result.loss_text_to_image])
        accuracy = torch.stack([result.accuracy_image_to_text, result.accuracy_text_to_image])
        results[name] = {
            "loss": all_reduce_sum(shares, world).mean(),
            "accuracy": all_reduce_sum(accuracy, world),
            "mean of the ranks' losses": all_reduce_sum(result.loss, world) / world_size,
            "gradients": {key: parameter.grad for key, parameter in model.named_parameters()},
            "features": gather_rows(image_features, size, world),
        }
    if world.is_main:
        torch.save(results, folder / f"results-{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)  # one exit in ten of a process that used gloo ends in std::terminate (torch 2.15): a thread is not joined

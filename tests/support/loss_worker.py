"""One rank of the loss tests: computes loss and gradients under DDP for every case and stores rank 0's.

python loss_worker.py RANK WORLD_SIZE FOLDER
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.distributed import all_reduce_sum, gather_rows, init_world, slice_bounds
from training.loss import contrastive_loss, sigmoid_loss
from training.step import compute_gradients


@dataclass(frozen=True)
class Case:
    """`micro` samples are embedded at a time; `frozen` names a tower without gradient."""

    size: int
    tile: int
    loss: str = "contrastive"
    micro: int | None = None
    frozen: str = ""


CASES = {
    "even": Case(8, 3),
    "uneven": Case(7, 4),
    "tile of the batch": Case(8, 8),
    "tile larger than the batch": Case(9, 100),
    "tile of one": Case(5, 1),
    "sigmoid": Case(8, 3, "sigmoid"),
    "sigmoid, uneven": Case(7, 4, "sigmoid"),
    "cached, one at a time": Case(8, 3, micro=1),
    "cached, uneven": Case(11, 4, micro=2),
    "cached, sigmoid": Case(11, 4, "sigmoid", micro=2),
    "frozen image tower": Case(8, 3, frozen="image"),
    "cached, frozen image tower": Case(11, 4, micro=2, frozen="image"),
    "cached, frozen text tower, sigmoid": Case(11, 4, "sigmoid", micro=2, frozen="text"),
}


class Towers(nn.Module):
    """Two small encoders with a temperature, in float64."""

    def __init__(self, loss: str = "contrastive", frozen: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 10)).double()
        self.text = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 10)).double()
        self.logit_scale = nn.Parameter(torch.tensor(2.6593, dtype=torch.float64))
        self.logit_bias = None
        if loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))
        if frozen:
            getattr(self, frozen).requires_grad_(False)

    def forward(self, images, texts):
        normalize = nn.functional.normalize
        bias = () if self.logit_bias is None else (self.logit_bias.clone(),)
        return normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1), self.logit_scale.exp(), *bias


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
    for name, case in CASES.items():
        model = Towers(case.loss, case.frozen)
        parallel = DistributedDataParallel(model)
        images, texts = batch(case.size)
        first, stop = slice_bounds(case.size, rank, world_size)
        size = case.size

        def loss(*features, case=case):
            function = sigmoid_loss if case.loss == "sigmoid" else contrastive_loss
            return function(*features, world, case.size, case.tile)

        result = compute_gradients(parallel, images[first:stop], texts[first:stop], loss, case.micro)
        with torch.no_grad():
            image_features, *_ = model(images[first:stop], texts[first:stop])
        shares = torch.stack([result.loss_image_to_text, result.loss_text_to_image])
        accuracy = torch.stack([result.accuracy_image_to_text, result.accuracy_text_to_image])
        results[name] = {
            "loss": all_reduce_sum(shares, world).mean(),
            "accuracy": all_reduce_sum(accuracy, world),
            "mean of the ranks' losses": all_reduce_sum(result.loss, world) / world_size,
            "gradients": {key: one.grad for key, one in model.named_parameters() if one.requires_grad},
            "features": gather_rows(image_features, size, world),
        }
    if world.is_main:
        torch.save(results, folder / f"results-{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)  # one exit in ten of a process that used gloo ends in std::terminate (torch 2.15): a thread is not joined

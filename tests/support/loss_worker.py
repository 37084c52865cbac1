"""Ranks of the loss tests: loss and gradients under DDP for every case and world size; stores rank 0's.

python -m tests.support.loss_worker FOLDER [large]
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.support.forked_ranks import run_ranks
from training import distributed
from training.loss import contrastive_loss, sigmoid_loss
from training.step.gradients import compute_gradients
from training.step.repeated_captions import number_captions, repeated_share

WORLD_SIZES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Case:
    """`micro` is the number of samples embedded at a time; `frozen` names a tower without gradient; `captions` that are the
    same are positives of each other, a letter for each sample."""

    size: int
    tile: int
    loss: str = "contrastive"
    micro: int | None = None
    frozen: str = ""
    captions: str = ""


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
    "no caption repeats": Case(7, 3, captions="abcdefg"),
    "some captions repeat": Case(11, 4, captions="abacdaefbag"),
    "all captions are the same": Case(8, 3, captions="aaaaaaaa"),
    "some captions repeat, cached": Case(11, 4, micro=2, captions="abacdaefbag"),
    "some captions repeat, frozen text tower": Case(7, 100, frozen="text", captions="aabbbcd"),
    "no caption repeats, sigmoid": Case(7, 3, "sigmoid", captions="abcdefg"),
    "some captions repeat, sigmoid": Case(11, 4, "sigmoid", captions="abacdaefbag"),
    "all captions are the same, sigmoid": Case(8, 3, "sigmoid", captions="aaaaaaaa"),
    "some captions repeat, sigmoid, cached": Case(11, 1, "sigmoid", micro=2, captions="abacdaefbag"),
}

LARGE_CASES = {
    "large": Case(2001, 128),
    "large, cached": Case(2001, 512, micro=33),
    "large, sigmoid, cached": Case(2001, 100, "sigmoid", micro=64),
    "large, frozen text tower": Case(2001, 1024, frozen="text"),
    "large, repeated captions": Case(2001, 128, captions="abcdefghijklmnopqrst" * 100 + "z"),
    "large, repeated captions, sigmoid": Case(2001, 1024, "sigmoid", captions="abcdefghijklmnopqrst" * 100 + "z"),
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


def tokens_of(captions: str) -> torch.Tensor:
    """Token ids of a rank's captions, cut to its longest: a caption's length is its letter's place in the alphabet."""
    rows = [torch.tensor([49406, *[ord(letter)] * (ord(letter) - 96), 49407]) for letter in captions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


@contextlib.contextmanager
def counted_traffic() -> Iterator[Counter[str]]:
    """Bytes moved by each collective: outputs for gathers, inputs for gradients."""
    traffic: Counter[str] = Counter()
    gather, scatter, buckets = dist.all_gather_into_tensor, dist.all_to_all_single, distributed.allreduce_hook

    def gather_counted(output, own):
        traffic["features"] += output.nbytes
        gather(output, own)

    def scatter_counted(output, own, *splits):
        traffic["feature gradients"] += own.nbytes
        scatter(output, own, *splits)

    def bucket_counted(group, bucket):
        traffic["gradients"] += bucket.buffer().nbytes
        return buckets(group, bucket)

    dist.all_gather_into_tensor, dist.all_to_all_single = gather_counted, scatter_counted
    distributed.allreduce_hook = bucket_counted
    try:
        yield traffic
    finally:
        dist.all_gather_into_tensor, dist.all_to_all_single, distributed.allreduce_hook = gather, scatter, buckets


def scattered(size: int, world: distributed.World) -> tuple[torch.Tensor, ...]:
    """(gradients by NCCL's collective, gradients by gloo's, expected gradients) of the backward pass: (G, 3) each."""
    bounds = distributed.all_bounds(size, world)
    rows = [torch.randn(size, 3, generator=torch.Generator().manual_seed(rank)) for rank in range(world.world_size)]
    found = (scatter(rows[world.rank], bounds, world) for scatter in (distributed.reduce_scatter, distributed.exchange_and_sum))
    return *(distributed.gather_rows(one, size, world) for one in found), torch.stack(rows).sum(0)


def main(rank: int, world_size: int, folder: Path, cases: dict[str, Case]) -> None:
    torch.set_num_threads(1)
    world = distributed.init_world(rank, world_size, f"file://{folder}/meet-{world_size}", torch.device("cpu"), timeout_s=60)

    def total(*values: torch.Tensor) -> torch.Tensor:
        return distributed.all_ranks(torch.stack(values), world).sum(0)

    results = {}
    for name, case in cases.items():
        model = Towers(case.loss, case.frozen)
        averaged = distributed.parallel(model, world)
        first, stop = distributed.slice_bounds(case.size, rank, world_size)
        images, texts = (rows[first:stop] for rows in batch(case.size))

        numbers = number_captions(tokens_of(case.captions[first:stop]), case.size, world) if case.captions else None

        def loss(*features, case=case, numbers=numbers):
            function = sigmoid_loss if case.loss == "sigmoid" else contrastive_loss
            return function(*features, world, case.size, case.tile, numbers)

        with counted_traffic() as traffic:
            result = compute_gradients(averaged, (images, texts), loss, case.micro)
        with torch.no_grad():
            image_features, *_ = model(images, texts)
        results[name] = {
            "loss": total(result.loss_image_to_text, result.loss_text_to_image).mean(),
            "accuracy": total(result.accuracy_image_to_text, result.accuracy_text_to_image),
            "mean of the ranks' losses": total(result.loss)[0] / world_size,
            "gradients": {key: one.grad for key, one in model.named_parameters() if one.requires_grad},
            "features": distributed.gather_rows(image_features, case.size, world),
            "traffic": dict(traffic),
            "repeated": repeated_share(numbers) if numbers is not None else None,
        }
    results["scatters"] = [scattered(size, world) for size in (8, 11)]
    if world.is_main:
        torch.save(results, folder / f"results-{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    asked = LARGE_CASES if "large" in sys.argv else CASES
    for size in WORLD_SIZES:
        run_ranks(partial(main, world_size=size, folder=Path(sys.argv[1]), cases=asked), size)

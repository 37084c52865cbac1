"""One rank of the evaluation tests: figures of small data sets, from features and from a whole model; stores rank 0's.

python -m tests.support.evaluation_worker FOLDER WORLD_SIZE ...
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from model.clip import build_clip
from tests.support.forked_ranks import run_ranks
from training.config import EvaluationConfig
from training.distributed import init_world, slice_bounds
from training.evaluation.figures import flatten
from training.evaluation.retrieval import rank_pairs, retrieval_figures
from training.evaluation.runner import evaluate

TILE = (128, 128)  # several tiles per rank, the last one partial
NAMES = ("random", "tied", "duplicates", "broken", "tiny")


def pairs(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of images and captions, and the index of each caption's image: 1 to 4 captions per image, in the images' order.

    "tied": few distinct scores. "duplicates": a third of the captions, and of the images, shares its feature with another.
    "broken": some are NaN. "tiny": two images, fewer than ranks.
    """
    generator, size = torch.Generator().manual_seed(len(name)), 2 if name == "tiny" else 301
    captions = torch.randint(1, 5, (size,), generator=generator)
    image_of_text = torch.arange(size).repeat_interleave(captions)
    images, noise = torch.randn(size, 48, generator=generator), torch.randn(len(image_of_text), 48, generator=generator)
    texts = images[image_of_text] + 2.5 * noise
    if name == "tied":
        return images[:, :6].sign(), texts[:, :6].sign(), image_of_text
    if name == "duplicates":
        images[2::3], texts[::3] = images[1::3], texts[7].clone()
    if name == "broken":
        images[::50], texts[::40] = torch.nan, torch.nan
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1), image_of_text


def ranks_of(name: str, world) -> dict[str, torch.Tensor]:
    images, texts, image_of_text = pairs(name)
    first, stop = slice_bounds(len(images), world.rank, world.world_size)
    own = (image_of_text >= first) & (image_of_text < stop)
    ranks = rank_pairs(images[first:stop], texts[own], image_of_text[own] - first, world, TILE)
    return vars(ranks) | {"figures": flatten(retrieval_figures(ranks))}


def evaluated(folder: Path, world) -> dict[str, float]:
    """Figures of a whole model on the data sets that evaluation.json names."""
    torch.manual_seed(0)
    config = EvaluationConfig.model_validate(json.loads((folder / "evaluation.json").read_text()))
    return evaluate(build_clip("debug-vit").eval(), config, world)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    world = init_world(rank, world_size, f"file://{folder}/meet-{world_size}", torch.device("cpu"), timeout_s=60)
    found = {name: ranks_of(name, world) for name in NAMES}
    found["evaluated"] = evaluated(folder, world)
    everybodys = [None] * world_size
    dist.all_gather_object(everybodys, found["evaluated"])
    assert all(one == found["evaluated"] for one in everybodys), "all ranks have the same figures"
    if world.is_main:
        torch.save(found, folder / f"results-{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for size in map(int, sys.argv[2:]):
        run_ranks(partial(main, world_size=size, folder=Path(sys.argv[1])), size)

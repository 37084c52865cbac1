"""Ranks of which one fails alone: what the others see. tests/unit/training/test_distributed.py starts it."""

import sys
from functools import partial
from pathlib import Path

import torch

from pipeline.errors import StorageAwayError
from tests.support.forked_ranks import run_ranks
from training.distributed import failed_together, failing_together, gather_objects, init_world


def main(rank: int, world_size: int, folder: Path) -> None:
    world = init_world(rank, world_size, f"file://{folder}/meet", torch.device("cpu"), timeout_s=60)
    seen = []
    try:
        with failing_together(world):
            with failing_together(world):
                if rank == 1:
                    raise StorageAwayError("s3://b: does not answer")
            gather_objects("data that no rank comes to", world)
    except StorageAwayError as error:
        seen = [str(error), failed_together(error, world)]
    assert seen == ["s3://b: does not answer", True], seen
    with failing_together(world):
        pass
    assert gather_objects(rank, world) == list(range(world_size)), "they continue together"


if __name__ == "__main__":
    run_ranks(partial(main, world_size=3, folder=Path(sys.argv[1])), 3)

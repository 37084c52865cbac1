"""Ranks as forks of one process, which has imported torch once for all of them."""

import os
import traceback
from collections.abc import Callable

import torch.fx.experimental.symbolic_shapes  # noqa: F401 - DDP would import it, and sympy, in every rank


def run_ranks(main: Callable[[int], None], world_size: int) -> None:
    """Run `main(rank)` in a fork for each rank. No thread may have been started before.

    Raises:
        RuntimeError: a rank failed; its traceback is on standard error.
    """
    children = [_fork(main, rank) for rank in range(world_size)]
    exit_codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(exit_codes):
        raise RuntimeError(f"exit codes of the {world_size} ranks: {exit_codes}")


def _fork(main: Callable[[int], None], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    exit_code = 1
    try:
        main(rank)
        exit_code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # After gloo a normal exit ends in std::terminate one time in ten, because a thread is not joined.
        os._exit(exit_code)

"""Sample orders: one that is small, strategies that draw any, and tests on drawn examples."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.order_layout import Source
from training.data.sample_order import SampleOrder

WORLD_SIZES = (1, 2, 3, 5, 7, 56)
FEW_EXAMPLES = 60


def on_examples(*strategies: st.SearchStrategy, soak: int) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Make a check of drawn examples a test on few of them, and in `make soak` one on as many as are told."""

    def decorate(check: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", [FEW_EXAMPLES, pytest.param(soak, marks=pytest.mark.soak)])
        def test(examples: int) -> None:
            settings(max_examples=examples, deadline=None)(given(*strategies)(check))()

        test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
        return test

    return decorate


@st.composite
def sources(draw):
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) >= 2))
    return Source(tuple(counts), draw(st.sampled_from((1.0, 1.0, 1.0, 2.0, 0.5, 2.7))))


@st.composite
def orders(draw):
    parts = tuple(draw(st.lists(sources(), min_size=1, max_size=3)))
    total = sum(part.epoch_samples for part in parts)
    streams = draw(st.integers(1, min(9, total)))
    return SampleOrder(
        sources=parts,
        seed=draw(st.integers(0, 2**40)),
        global_batch_size=draw(st.integers(1, total // streams * streams)),
        num_streams=streams,
        block_size_samples=draw(st.integers(1, 50)),
        run_size_samples=draw(st.integers(1, 20)),
        shuffle_shards=draw(st.integers(1, 5)),
    )


def order(**changes) -> SampleOrder:
    values = {
        "sources": (Source((100,) * 20),),
        "seed": 1,
        "num_streams": 8,
        "block_size_samples": 50,
        "global_batch_size": 64,
    }
    return SampleOrder(**(values | changes))

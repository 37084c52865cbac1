"""Sample orders: one that is small, and strategies that draw any."""

from hypothesis import strategies as st

from training.data.order_layout import Source
from training.data.sample_order import SampleOrder

WORLD_SIZES = (1, 2, 3, 5, 7, 56)


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

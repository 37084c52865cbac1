"""The order is a pure function of (manifest, seed, epoch, step), whatever the number of workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import ConfigError
from training.distributed import slice_bounds
from training.sample_order import SampleOrder

WORLD_SIZES = (1, 2, 3, 5, 7, 56)


@st.composite
def orders(draw):
    counts = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) >= 2)))
    streams = draw(st.integers(1, min(9, sum(counts))))
    usable = sum(counts) // streams * streams
    return SampleOrder(
        shard_counts=counts,
        seed=draw(st.integers(0, 2**40)),
        num_streams=streams,
        block_size_samples=draw(st.integers(1, 50)),
        global_batch_size=draw(st.integers(1, usable)),
    )


@settings(max_examples=300, deadline=None)
@given(orders(), st.integers(0, 3))
def test_an_epoch_shows_each_sample_at_most_once_and_all_but_the_stated_remainder(order, epoch):
    seen = np.concatenate([order.step_samples(epoch, step) for step in range(order.steps_per_epoch)])
    assert len(seen) == len(set(seen.tolist())) == order.num_samples - order.remainder
    assert seen.min() >= 0
    assert seen.max() < order.num_samples
    assert order.remainder < order.global_batch_size + order.num_streams


@settings(max_examples=200, deadline=None)
@given(orders(), st.sampled_from(WORLD_SIZES), st.data())
def test_the_slices_of_any_world_size_make_up_the_same_step(order, world_size, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    samples = order.step_samples(0, step)
    bounds = [slice_bounds(order.global_batch_size, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate([samples[first:stop] for first, stop in bounds]), samples)
    sizes = [stop - first for first, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_a_resume_at_any_number_of_samples_seen_goes_on_with_the_next_step(order, data):
    steps = data.draw(st.integers(0, 3 * order.steps_per_epoch))
    epoch, step = order.locate(steps * order.global_batch_size)
    assert epoch * order.steps_per_epoch + step == steps
    again = SampleOrder(order.shard_counts, order.seed, order.num_streams, order.block_size_samples, order.global_batch_size)
    assert np.array_equal(order.step_samples(epoch, step), again.step_samples(epoch, step))


@settings(max_examples=100, deadline=None)
@given(orders())
def test_the_pieces_of_a_block_are_what_its_samples_need(order):
    slots = order.step_slots(0, 0)
    for stream, block, index in zip(slots.stream.tolist(), slots.block.tolist(), slots.index.tolist(), strict=True):
        pieces = order.block_pieces(0, stream, block)
        covered = {order.first_of_shard(piece.shard) + within for piece in pieces for within in range(piece.first, piece.stop)}
        assert index in covered
        assert len(covered) <= order.block_size_samples
        assert all(0 <= piece.first < piece.stop <= order.shard_counts[piece.shard] for piece in pieces)


def order(**changes) -> SampleOrder:
    values = {
        "shard_counts": (100,) * 20,
        "seed": 1,
        "num_streams": 8,
        "block_size_samples": 50,
        "global_batch_size": 64,
    }
    return SampleOrder(**(values | changes))


def test_seeds_and_epochs_differ():
    first = order().step_samples(0, 0)
    assert not np.array_equal(first, order().step_samples(1, 0))
    assert not np.array_equal(first, order(seed=2).step_samples(0, 0))


def test_the_order_is_the_same_on_every_platform_and_version():
    assert order().step_samples(3, 2)[:8].tolist() == FIXED
    assert order().locate(64 * (31 + 4)) == (1, 4)


FIXED = [204, 207, 224, 228, 229, 226, 201, 248]


def test_a_rank_reads_about_its_share_of_the_streams():
    slots = order(global_batch_size=64, num_streams=8).step_slots(0, 0)
    for world_size in (1, 2, 4, 8):
        for rank in range(world_size):
            first, stop = slice_bounds(64, rank, world_size)
            assert len(set(slots[first:stop].stream.tolist())) <= 8 // world_size + 1


def test_a_step_draws_from_every_stream_alike():
    streams = order().step_slots(0, 3).stream.tolist()
    assert streams == sorted(streams)
    assert set(np.bincount(streams)) == {8}


def test_a_batch_larger_than_the_data_set_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"train\.global_batch_size=4000 is more than the data set's 2000 samples.*use 2000"):
        order(global_batch_size=4000)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ConfigError, match="no samples"):
        order(shard_counts=(0, 0))


def test_a_position_between_steps_is_refused():
    with pytest.raises(ConfigError, match="samples_seen=65"):
        order().locate(65)

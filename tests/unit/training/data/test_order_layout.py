"""Steps, blocks and streams fit together for any sizes, and sizes that do not fit are refused."""

import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from tests.support.orders import WORLD_SIZES, on_examples, order, orders
from training.data.order_layout import (
    Source,
    block_share,
    block_steps,
    fit_batch_size,
    locate_sample,
    locate_samples,
    locate_shard,
    next_step,
    number_shards,
    step_spans,
)
from training.distributed import slice_bounds


def test_shards_are_numbered_over_sources_and_repeats():
    table = number_shards((Source((3, 0)), Source((2, 1), 1.5)))
    assert table.counts.tolist() == [3, 0, 2, 1, 2, 1]
    assert [tuple(locate_shard(table, shard)) for shard in (0, 1, 2, 5)] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1)]
    everywhere = [locate_sample(table, index) for index in range(table.num_samples)]
    assert everywhere == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (3, 0), (4, 0), (4, 1), (5, 0)]
    shards, positions = locate_samples(table, np.arange(9))
    assert list(zip(shards.tolist(), positions.tolist(), strict=True)) == everywhere


@on_examples(orders(), st.sampled_from(WORLD_SIZES), st.data(), soak=200)
def test_a_block_names_the_steps_and_places_that_a_rank_takes_from_it(order, world_size, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    start, stop = slice_bounds(order.layout.global_batch_size, data.draw(st.integers(0, world_size - 1)), world_size)
    for span in step_spans(order.layout, step, start, stop):
        steps = block_steps(order.layout, span.stream, span.block)
        assert step in steps
        taken = []
        for other in steps:
            first, end = block_share(order.layout, other, span.stream, span.block, start, stop)
            spans = [one for one in step_spans(order.layout, other, start, stop) if one[:2] == span[:2]]
            assert [(first, end)] == [(one.first, one.stop) for one in spans] if spans else first >= end
            taken += range(first, end)
        assert len(set(taken)) == len(taken)
        for other in (steps.start - 1, steps.stop):
            if 0 <= other < order.steps_per_epoch:
                assert all(one[:2] != span[:2] for one in step_spans(order.layout, other))


def test_a_rank_reads_about_its_share_of_the_streams():
    for world_size in (1, 2, 4, 8):
        for rank in range(world_size):
            spans = step_spans(order().layout, 0, *slice_bounds(64, rank, world_size))
            assert len({span.stream for span in spans}) <= 8 // world_size + 1


def test_a_step_draws_from_every_stream_alike():
    spans = list(step_spans(order().layout, 3))
    streams = [span.stream for span in spans for _ in range(span.first, span.stop)]
    assert streams == sorted(streams)
    assert set(np.bincount(streams)) == {8}


def test_streams_change_their_block_at_different_steps():
    one = order(sources=(Source((1000,) * 20),), block_size_samples=80)
    changes = [sum(span.first == 0 for span in step_spans(one.layout, step)) for step in range(1, 200)]
    assert max(changes) <= 2
    assert min(changes[10:]) >= 0
    assert sum(changes) > 100


def test_a_batch_larger_than_the_data_set_is_refused_with_the_remedy():
    refusal = r"train\.global_batch_size=4000: an epoch must hold at least one batch.*2000 samples.*use 2000"
    with pytest.raises(ConfigError, match=refusal):
        order(global_batch_size=4000)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ConfigError, match="no samples"):
        order(sources=(Source((0, 0)),))


def test_a_position_between_steps_is_refused():
    with pytest.raises(ConfigError, match="samples_seen=65"):
        next_step(order().layout, 65)


def test_a_batch_size_is_lowered_by_halves_for_enough_steps():
    assert fit_batch_size(500, 512, 10) == 32
    assert fit_batch_size(5_000, 512, 10) == 256
    assert fit_batch_size(50_000, 512, 10) == 512
    assert fit_batch_size(3, 512, 10) == 2

"""The order is a pure function of (manifests, seed, epoch, step), whatever the number of workers."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from training.data.sample_order import SampleOrder, Source
from training.distributed import slice_bounds

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


def whole_epoch(order, epoch=0):
    return np.concatenate([order.step_samples(epoch, step) for step in range(order.steps_per_epoch)])


@settings(max_examples=400, deadline=None)
@given(orders(), st.integers(0, 3))
def test_an_epoch_shows_each_sample_at_most_once_and_all_but_the_stated_remainder(order, epoch):
    seen = whole_epoch(order, epoch)
    assert len(seen) == len(set(seen.tolist())) == order.epoch_samples - order.remainder
    assert order.remainder < order.global_batch_size + order.num_streams
    shown = Counter()
    for index in seen.tolist():
        shard, within = order.locate_sample(index)
        source, repeat, number = order.place(shard)
        assert 0 <= within < order.sources[source].shard_counts[number]
        assert 0 <= repeat < order.sources[source].repeats
        shown[source] += 1
    for number, source in enumerate(order.sources):
        assert source.epoch_samples - order.remainder <= shown[number] <= source.epoch_samples


@settings(max_examples=300, deadline=None)
@given(orders(), st.sampled_from(WORLD_SIZES), st.data())
def test_the_slices_of_any_world_size_make_up_the_same_step(order, world_size, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    samples = order.step_samples(0, step)
    bounds = [slice_bounds(order.global_batch_size, rank, world_size) for rank in range(world_size)]
    parts = [order.step_samples(0, step, first, stop) for first, stop in bounds if first < stop]
    assert np.array_equal(np.concatenate(parts), samples)
    sizes = [stop - first for first, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=300, deadline=None)
@given(orders(), st.lists(st.sampled_from(WORLD_SIZES), min_size=2, max_size=5), st.data())
def test_resumes_at_any_step_and_world_size_go_on_with_the_same_samples(order, world_sizes, data):
    """A run that changes its number of workers at drawn steps, from nothing but the samples seen."""
    total = min(2 * order.steps_per_epoch, 40)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), min_size=len(world_sizes) - 1, max_size=len(world_sizes) - 1)))
    samples_seen, shown = 0, []
    for world_size, stop in zip(world_sizes, [*cuts, total], strict=True):
        again = SampleOrder(**{name: getattr(order, name) for name in order.__dataclass_fields__})
        while samples_seen < stop * order.global_batch_size:
            place = again.locate(samples_seen)
            for rank in range(world_size):
                bounds = slice_bounds(order.global_batch_size, rank, world_size)
                if bounds[0] < bounds[1]:
                    shown.append(again.step_samples(*place, *bounds))
            samples_seen += order.global_batch_size
    undisturbed = [order.step_samples(*divmod(step, order.steps_per_epoch)) for step in range(total)]
    assert np.array_equal(np.concatenate([[], *shown]), np.concatenate([[], *undisturbed]))


@settings(max_examples=200, deadline=None)
@given(orders())
def test_the_pieces_of_a_block_are_what_its_samples_need_and_no_longer_than_a_run(order):
    for span in order.step_spans(0):
        pieces = order.block_pieces(0, span.stream, span.block)
        covered = [order.first_of_shard(piece.shard) + within for piece in pieces for within in range(piece.first, piece.stop)]
        assert sorted(covered) == sorted(order.block_samples(0, span.stream, span.block).tolist())
        assert len(covered) <= order.block_size_samples
        assert all(0 < piece.stop - piece.first <= order.run_size_samples for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(orders(), st.sampled_from(WORLD_SIZES), st.data())
def test_a_block_names_the_steps_and_places_that_a_rank_takes_of_it(order, world_size, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    start, stop = slice_bounds(order.global_batch_size, data.draw(st.integers(0, world_size - 1)), world_size)
    for span in order.step_spans(step, start, stop):
        steps = order.block_steps(span)
        assert step in steps
        taken = []
        for other in steps:
            first, end = order.block_span(other, span.stream, span.block, start, stop)
            spans = [one for one in order.step_spans(other, start, stop) if one[:2] == span[:2]]
            assert [(first, end)] == [(one.first, one.stop) for one in spans] if spans else first >= end
            taken += range(first, end)
        assert len(set(taken)) == len(taken)
        for other in (steps.start - 1, steps.stop):
            if 0 <= other < order.steps_per_epoch:
                assert all(one[:2] != span[:2] for one in order.step_spans(other))


def order(**changes) -> SampleOrder:
    values = {
        "sources": (Source((100,) * 20),),
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


FIXED = [14, 12, 8, 1578, 4, 13, 433, 1396]


def test_a_rank_reads_about_its_share_of_the_streams():
    for world_size in (1, 2, 4, 8):
        for rank in range(world_size):
            spans = order().step_spans(0, *slice_bounds(64, rank, world_size))
            assert len({span.stream for span in spans}) <= 8 // world_size + 1


def test_a_step_draws_from_every_stream_alike():
    spans = list(order().step_spans(3))
    streams = [span.stream for span in spans for _ in range(span.first, span.stop)]
    assert streams == sorted(streams)
    assert set(np.bincount(streams)) == {8}


def test_streams_change_their_block_at_different_steps():
    one = order(sources=(Source((1000,) * 20),), block_size_samples=80)
    changes = [sum(span.first == 0 for span in one.step_spans(step)) for step in range(1, 200)]
    assert max(changes) <= 2
    assert min(changes[10:]) >= 0
    assert sum(changes) > 100


def test_neighbours_of_a_run_stay_together_and_shards_do_not():
    """A block of 50 is made of runs from several shards; a data set of one category a shard mixes within it."""
    shards = [order().locate_sample(int(index))[0] for index in order().block_samples(0, 3, 2)]
    assert len(set(shards)) >= 3


def test_the_last_part_of_a_weight_differs_between_epochs():
    part = order(sources=(Source((10,) * 50, 0.2),), global_batch_size=50)
    assert part.epoch_samples == 100
    assert set(whole_epoch(part, 0).tolist()) != set(whole_epoch(part, 1).tolist())


def test_a_mixture_shows_its_sources_by_their_weights():
    mixture = order(sources=(Source((100,) * 10), Source((20,) * 5, 3.0), Source((400,) * 4, 0.25)))
    shown = Counter(mixture.place(mixture.locate_sample(int(index))[0]).source for index in whole_epoch(mixture))
    assert mixture.epoch_samples == 1000 + 300 + 400
    assert shown[0] / 1000 == pytest.approx(1, abs=0.1)
    assert shown[1] / 300 == pytest.approx(1, abs=0.1)
    assert shown[2] / 400 == pytest.approx(1, abs=0.1)


def test_substitutes_are_always_the_same():
    assert list(islice(order().substitutes(1, 77), 9)) == list(islice(order().substitutes(1, 77), 9))
    assert list(islice(order().substitutes(1, 77), 9)) != list(islice(order().substitutes(1, 78), 9))


def test_a_batch_larger_than_the_data_set_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"train\.global_batch_size=4000 is more than the data set's 2000 samples.*use 2000"):
        order(global_batch_size=4000)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ConfigError, match="no samples"):
        order(sources=(Source((0, 0)),))


def test_a_position_between_steps_is_refused():
    with pytest.raises(ConfigError, match="samples_seen=65"):
        order().locate(65)

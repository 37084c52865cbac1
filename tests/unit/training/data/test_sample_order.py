"""The order is a pure function of (manifests, seed, epoch, step), whatever the number of workers."""

import hashlib
import json
import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.support.orders import WORLD_SIZES, on_examples, order, orders
from training.data.order_layout import Source, locate_sample, locate_samples, locate_shard, next_step, step_spans
from training.data.sample_order import SampleOrder
from training.distributed import slice_bounds


def copy_of(order):
    return SampleOrder(
        order.sources,
        order.seed,
        order.layout.global_batch_size,
        order.layout.num_streams,
        order.layout.block_size_samples,
        order.run_size_samples,
        order.shuffle_shards,
        order.version,
    )


@on_examples(orders(), soak=200)
def test_another_process_gets_the_same_order(order):
    found = pickle.loads(pickle.dumps(order))
    assert found.identity() == order.identity()
    assert found.step_samples(1, 0).tolist() == order.step_samples(1, 0).tolist()


def whole_epoch(order, epoch=0):
    return np.concatenate([order.step_samples(epoch, step) for step in range(order.steps_per_epoch)])


@on_examples(orders(), st.integers(0, 3), soak=400)
def test_an_epoch_shows_each_sample_at_most_once_and_all_but_the_stated_remainder(order, epoch):
    seen = whole_epoch(order, epoch)
    assert len(seen) == len(set(seen.tolist())) == order.epoch_samples - order.remainder
    assert order.remainder < order.layout.global_batch_size + order.layout.num_streams
    shown = Counter()
    for index in seen.tolist():
        shard, within = locate_sample(order.shards, index)
        source, repeat, number = locate_shard(order.shards, shard)
        assert 0 <= within < order.sources[source].shard_counts[number]
        assert 0 <= repeat < order.sources[source].repeats
        shown[source] += 1
    for number, source in enumerate(order.sources):
        assert source.epoch_samples - order.remainder <= shown[number] <= source.epoch_samples


@on_examples(orders(), st.sampled_from(WORLD_SIZES), st.data(), soak=300)
def test_the_slices_of_any_world_size_make_up_the_same_step(order, world_size, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    samples = order.step_samples(0, step)
    bounds = [slice_bounds(order.layout.global_batch_size, rank, world_size) for rank in range(world_size)]
    parts = [order.step_samples(0, step, first, stop) for first, stop in bounds if first < stop]
    assert np.array_equal(np.concatenate(parts), samples)
    sizes = [stop - first for first, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@on_examples(orders(), st.lists(st.sampled_from(WORLD_SIZES), min_size=2, max_size=5), st.data(), soak=300)
def test_resumes_at_any_step_and_world_size_continue_with_the_same_samples(order, world_sizes, data):
    """A run that changes its number of workers at drawn steps, from nothing but the samples seen."""
    total = min(2 * order.steps_per_epoch, 40)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), min_size=len(world_sizes) - 1, max_size=len(world_sizes) - 1)))
    samples_seen, shown = 0, []
    for world_size, stop in zip(world_sizes, [*cuts, total], strict=True):
        again = copy_of(order)
        while samples_seen < stop * order.layout.global_batch_size:
            place = next_step(again.layout, samples_seen)
            for rank in range(world_size):
                bounds = slice_bounds(order.layout.global_batch_size, rank, world_size)
                if bounds[0] < bounds[1]:
                    shown.append(again.step_samples(*place, *bounds))
            samples_seen += order.layout.global_batch_size
    undisturbed = [order.step_samples(*divmod(step, order.steps_per_epoch)) for step in range(total)]
    assert np.array_equal(np.concatenate([[], *shown]), np.concatenate([[], *undisturbed]))


@on_examples(orders(), soak=200)
def test_the_pieces_of_a_block_are_what_its_samples_need_and_no_longer_than_a_run(order):
    for span in step_spans(order.layout, 0):
        pieces = order.block_pieces(0, span.stream, span.block)
        runs = list(zip(pieces.shard.tolist(), pieces.first.tolist(), pieces.length.tolist(), strict=True))
        starts = [int(order.shards.starts[shard]) + first for shard, first, _ in runs]
        covered = [start + within for start, (_, _, length) in zip(starts, runs, strict=True) for within in range(length)]
        assert sorted(covered) == sorted(order.block_samples(0, span.stream, span.block).tolist())
        assert len(covered) <= order.layout.block_size_samples
        assert all(0 < length <= order.run_size_samples for _, _, length in runs)


def test_seeds_and_epochs_differ():
    first = order().step_samples(0, 0)
    assert not np.array_equal(first, order().step_samples(1, 0))
    assert not np.array_equal(first, order(seed=2).step_samples(0, 0))


def test_the_order_is_the_same_on_every_platform_and_version():
    assert order().step_samples(3, 2)[:8].tolist() == FIXED
    assert next_step(order().layout, 64 * (31 + 4)) == (1, 4)


FIXED = [14, 12, 8, 1578, 4, 13, 433, 1396]


def test_neighbours_of_a_run_stay_together_and_shards_do_not():
    """A block of 50 is made of runs from several shards; a data set of one category a shard mixes within it."""
    shards = [locate_sample(order().shards, int(index))[0] for index in order().block_samples(0, 3, 2)]
    assert len(set(shards)) >= 3


def test_the_last_part_of_a_weight_differs_between_epochs():
    part = order(sources=(Source((10,) * 50, 0.2),), global_batch_size=50)
    assert part.epoch_samples == 100
    assert set(whole_epoch(part, 0).tolist()) != set(whole_epoch(part, 1).tolist())


def test_a_mixture_shows_its_sources_by_their_weights():
    mixture = order(sources=(Source((100,) * 10), Source((20,) * 5, 3.0), Source((400,) * 4, 0.25)))
    shards, _ = locate_samples(mixture.shards, whole_epoch(mixture))
    shown = Counter(locate_shard(mixture.shards, shard).source for shard in shards.tolist())
    assert mixture.epoch_samples == 1000 + 300 + 400
    assert shown[0] / 1000 == pytest.approx(1, abs=0.1)
    assert shown[1] / 300 == pytest.approx(1, abs=0.1)
    assert shown[2] / 400 == pytest.approx(1, abs=0.1)


def test_substitutes_are_always_the_same():
    assert list(islice(order().substitutes(1, 77), 9)) == list(islice(order().substitutes(1, 77), 9))
    assert list(islice(order().substitutes(1, 77), 9)) != list(islice(order().substitutes(1, 78), 9))


@pytest.mark.parametrize(("counts", "weight"), [((1000,), 0.3), ((500, 500), 0.3), ((900, 50, 50), 0.1), ((100,), 1.5)])
def test_the_part_of_a_weight_shows_all_samples_alike_over_the_epochs(counts, weight):
    """A shard of which an epoch takes a part once showed its first samples each time."""
    part = order(sources=(Source(counts, weight),), global_batch_size=25, num_streams=1)
    epochs = [locate_samples(part.shards, whole_epoch(part, epoch)) for epoch in range(80)]
    shown = Counter()
    for shards, within in epochs:
        shown.update((locate_shard(part.shards, shard).shard, place) for shard, place in zip(shards, within, strict=True))
    often = np.array([shown[number, place] for number, count in enumerate(counts) for place in range(count)])
    assert often.sum() == 80 * sum(counts) * weight
    assert often.std() < 1.5 * np.sqrt(80 * weight)
    assert often.min() > 0


@pytest.mark.parametrize("whole", [(Source((100,) * 3),), (Source((100,), 2.0), Source((7, 13)))])
def test_the_order_of_whole_data_sets_is_that_of_the_version_before(whole):
    new, old = (order(sources=whole, version=version) for version in (3, 2))
    assert all(np.array_equal(whole_epoch(new, epoch), whole_epoch(old, epoch)) for epoch in range(3))


MIXTURE = (Source((100,) * 10), Source((20,) * 5, 3.0), Source((400,) * 4, 0.25))
PARTS = (Source((10,) * 50, 0.2), Source((7, 0, 13), 2.7))
ORDERS = {
    "one data set": (order(version=2), (0, 1, 3)),
    "default sizes": (SampleOrder((Source((1000, 997, 0, 1003, 250)),), 0, 256, 64, 128, version=2), (0, 1)),
    "a million samples": (SampleOrder((Source((10_000,) * 100),), 7, 4096, 64, 2048, version=2), (0, 2)),
    "a mixture": (SampleOrder(MIXTURE, 2**40, 64, 8, 50, 7, 3, version=2), (0, 1, 2)),
    "parts of data sets": (SampleOrder(PARTS, 3, 33, 5, 9, 4, 2, version=2), (0, 1, 2, 5)),
    "one stream": (SampleOrder((Source((40, 25)),), 5, 12, 1, 1, 1, 1, version=2), (0, 1)),
    "one block": (SampleOrder((Source((40, 25)),), 5, 12, 2, 1000, 64, version=2), (0, 1)),
    "a mixture, version 3": (SampleOrder(MIXTURE, 2**40, 64, 8, 50, 7, 3), (0, 1, 2)),
    "parts of data sets, version 3": (SampleOrder(PARTS, 3, 33, 5, 9, 4, 2), (0, 1, 2, 5)),
}
"""name -> (order, epochs)"""
RECORDED = {
    "one data set": "d1f6aaf4c8b64067",
    "default sizes": "0fea96295cb18a80",
    "a million samples": "b969a903e23f3f90",
    "a mixture": "bd654fa37c5aea5e",
    "parts of data sets": "7442b145386e7f51",
    "one stream": "708ec6d78d85477b",
    "one block": "8f9aafe70f361343",
    "a mixture, version 3": "46d2b4361318fb35",
    "parts of data sets, version 3": "5c0d32b6b141d276",
}
"""Existing runs resume by these orders: with a different one they would repeat some samples and omit others."""


@pytest.mark.parametrize("name", ORDERS)
def test_the_orders_that_existing_runs_resume_by_are_unchanged(name):
    order, epochs = ORDERS[name]
    digest = hashlib.sha256(json.dumps(order.identity()).encode())
    for epoch in epochs:
        for step in range(order.steps_per_epoch):
            digest.update(order.step_samples(epoch, step).astype("<i8").tobytes())
        digest.update(np.array(list(islice(order.substitutes(epoch, 11), 50)), "<i8").tobytes())
    located = [locate_sample(order.shards, index) for index in order.step_samples(0, 0).tolist()]
    digest.update(json.dumps([(*locate_shard(order.shards, shard), position) for shard, position in located]).encode())
    batch_size = order.layout.global_batch_size
    resumed = next_step(order.layout, batch_size * (order.steps_per_epoch + 1))
    digest.update(json.dumps([resumed, order.steps_per_epoch, order.remainder, order.epoch_samples]).encode())
    own = copy_of(order).step_samples(*resumed, batch_size // 3, 2 * batch_size // 3)  # a rank's, in a new process
    digest.update(own.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == RECORDED[name]

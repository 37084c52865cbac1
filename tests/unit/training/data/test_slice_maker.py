"""A share of each step is read and decoded in order of the steps; errors come in that order too."""

import itertools

import numpy as np
import pytest

from pipeline.dataset.manifest import ManifestError
from pipeline.errors import StorageError
from tests.support.loaders import BATCH, batches, damage, keys_of, order_of
from training.config import DataConfig
from training.data.data_sets import open_data_sets
from training.data.decoding import Transform
from training.data.prefetcher import SampleFetcher
from training.data.slice_maker import Share, SliceMaker, seed_number

TRANSFORM = Transform(32, 77, 0.9)


def share_of(uri, bounds=(0, BATCH), **options):
    config = DataConfig(uri=uri, **options)
    return Share(open_data_sets(config), order_of(config), bounds, config, TRANSFORM, 0)


def make(share, steps):
    """(pixels, slice) of so many steps, all begun before the first is finished."""
    maker = SliceMaker(share)
    try:
        pixels = [np.zeros(share.shape, np.uint8) for _ in range(steps)]
        for step in range(steps):
            maker.begin(*divmod(step, share.order.steps_per_epoch), pixels[step])
        assert maker.in_flight == steps
        return [(pixels[step], maker.finish()) for step in range(steps)]
    finally:
        maker.close()


@pytest.mark.parametrize("threads", [[1], [1, 1], [4, 4, 3]])
def test_shares_hold_the_positions_the_memory_and_the_threads_of_the_whole(data_set, threads):
    whole = share_of(data_set, (2, 37), prefetch_bytes=1_000_000, read_threads=8)
    parts = whole.split(threads)
    assert [part.threads for part in parts] == threads
    assert (parts[0].bounds[0], parts[-1].bounds[1]) == whole.bounds
    assert all(one.bounds[1] == two.bounds[0] for one, two in itertools.pairwise(parts))
    assert 0.99e6 < sum(part.config.prefetch_bytes for part in parts) <= 1_000_000
    assert 8 <= sum(part.config.read_threads for part in parts) < 8 + len(threads)
    samples = [part.shape[0] / part.threads for part in parts]
    assert max(samples) - min(samples) <= 1


def test_parts_together_hold_what_one_share_holds(data_set):
    whole = share_of(data_set)
    expected = make(whole, 4)
    parts = [make(part, 4) for part in whole.split([2, 1])]
    for (pixels, one), *others in zip(expected, *parts, strict=True):
        assert np.array_equal(np.concatenate([part for part, _ in others]), pixels)
        assert [key for _, part in others for key in part.keys] == one.keys
        assert [seed for _, part in others for seed in part.seeds] == one.seeds.tolist()


def test_seeds_follow_from_run_epoch_and_key(data_set):
    share = share_of(data_set)
    ((_, made),) = make(share, 1)
    assert made.seeds.tolist() == [seed_number(f"{share.order.seed}/0/{key}") for key in made.keys]
    assert set(made.keys) <= set(keys_of(data_set))
    assert not made.problems


def test_replaced_samples_are_reported_with_the_slice_that_lacked_them(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    keys = damage(uri, 0, 2, 3, 11)
    made = [one for _, one in make(share_of(uri, on_damage="skip"), 4)]
    problems = [problem for one in made for problem in one.problems]
    assert problems
    assert all("sha256" in problem and any(key in problem for key in keys) for problem in problems)
    expected = batches(uri, 4, on_damage="skip")
    assert [one.keys for one in made] == [batch.keys for batch in expected]


def test_an_error_comes_after_the_slices_before_it_and_nothing_is_read_after_one(data_set, monkeypatch):
    share, steps = share_of(data_set), []
    step_of = SampleFetcher.step

    def fails_at_two(self, epoch, step):
        steps.append(step)
        if step == 2:
            raise StorageError("s3://bucket/set: cannot be reached")
        return step_of(self, epoch, step)

    monkeypatch.setattr(SampleFetcher, "step", fails_at_two)
    maker = SliceMaker(share)
    pixels = np.zeros(share.shape, np.uint8)
    for step in range(4):
        maker.begin(0, step, pixels)
    assert steps == [0, 1, 2]
    assert [len(maker.finish().keys) for _ in range(2)] == [BATCH, BATCH]
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot be reached"):
            maker.finish()
    maker.close()


def test_damage_fails_with_the_key_that_skips_it(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"))
    damage(uri, 0, *range(20))
    with pytest.raises(ManifestError, match=r"data\.on_damage=skip"):
        make(share_of(uri), 3)

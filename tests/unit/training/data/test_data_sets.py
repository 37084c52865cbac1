"""The data sets of a run: versions are pinned, sizes follow from the configuration, and blocks must fit into the budget."""

import pytest

from pipeline.dataset.manifest import ManifestError
from pipeline.errors import ConfigError
from tests.support.loaders import ORDER, order_of
from training.config import DataConfig
from training.data.data_sets import block_size_samples, check_prefetch, mean_sample_bytes, open_data_sets


def test_latest_is_the_newest_version_for_a_new_run_and_the_checkpoints_for_a_resumed_one(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (20,))
    (first,) = open_data_sets(DataConfig(uri=uri))
    make_data_set(uri, (13,), seed=2)
    (new,) = open_data_sets(DataConfig(uri=uri))
    (resumed,) = open_data_sets(DataConfig(uri=uri), [first.identity()])
    assert [one.manifest.version for one in (first, new, resumed)] == [1, 2, 1]
    assert [one.newest for one in (first, new, resumed)] == [None, None, 2]
    assert resumed.identity() == first.identity() != new.identity()
    assert [one.source.shard_counts for one in (resumed, new)] == [(20,), (20, 13)]


def test_a_mixture_opens_each_part_with_its_weight(data_set):
    parts = [{"uri": data_set}, {"uri": data_set, "version": 1, "weight": 2.5}]
    data_sets = open_data_sets(DataConfig(mixture=parts))
    assert [one.source.epoch_samples for one in data_sets] == [64, 160]
    assert str(data_sets[0]) == f"{data_set} version 1"
    assert str(data_sets[1]) == f"{data_set} version 1 x 2.5"


def test_a_data_set_that_is_not_named_or_does_not_exist_is_refused(data_set, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.uri: is empty; name a data set"):
        open_data_sets(DataConfig())
    with pytest.raises(ManifestError):
        open_data_sets(DataConfig(uri=str(tmp_path / "none")))
    with pytest.raises(ManifestError):
        open_data_sets(DataConfig(uri=data_set, version=7))


def test_blocks_hold_32_global_batches_together_unless_their_size_is_given():
    assert block_size_samples(DataConfig(), 256) == 128
    assert block_size_samples(DataConfig(), 2) == 16, "a block is no smaller than a run"
    assert block_size_samples(DataConfig(block_size_samples=50), 256) == 50


def test_blocks_beyond_the_budget_are_refused(data_set):
    config = DataConfig(uri=data_set, prefetch_bytes=1000)
    order = order_of(config)
    mean = mean_sample_bytes(open_data_sets(config), order)
    assert 1000 < mean < 4000
    needed = int(ORDER["num_streams"] * ORDER["block_size_samples"] * mean)
    with pytest.raises(ConfigError, match=rf"data\.prefetch_bytes=1000 is less than the {needed} bytes"):
        check_prefetch(config, order, mean, 12)
    check_prefetch(config.model_copy(update={"prefetch_bytes": needed}), order, mean, 12)

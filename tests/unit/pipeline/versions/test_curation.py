"""Rules choose samples, in their order, and selections of selections count all drops."""

import pandas as pd
import pytest

from pipeline.config import CurateConfig
from pipeline.dataset.manifest import read_manifest, read_samples
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.curation import Rules, duplicates, judge, read_rules, select


@pytest.fixture
def storage(make_data_set, tmp_path):
    return open_storage(make_data_set(str(tmp_path / "data"), (8,)))


def test_the_first_rule_that_drops_a_sample_is_its_reason(storage):
    (shard,) = read_manifest(storage).shards
    captions = read_samples(storage, shard, ["caption"])["caption"].to_pylist()
    verdicts, hashes = judge(storage, shard, Rules(CurateConfig(max_caption_characters=20, where="shape == 'disc'")))
    assert [verdict == "long_caption" for verdict in verdicts] == [len(caption) > 20 for caption in captions]
    assert set(verdicts) <= {"", "long_caption", "where"}
    assert all(len(digest) == 64 for digest in hashes)


def test_a_selection_of_a_selection_counts_the_drops_of_both(storage):
    (shard,) = read_manifest(storage).shards
    first = select(storage, shard, ["", "where", "", "", "too_small", "", "", ""])
    second = select(storage, first, ["", "", "where", "", "", ""])
    assert (first.num_samples, second.num_samples) == (6, 5)
    assert second.selection.drops == {"too_small": 1, "where": 2}
    keys = read_samples(storage, shard, ["key"])["key"].to_pylist()
    assert read_samples(storage, second, ["key"])["key"].to_pylist() == [keys[place] for place in (0, 2, 5, 6, 7)]


def test_a_selection_without_drops_is_none(storage):
    (shard,) = read_manifest(storage).shards
    assert select(storage, shard, [""] * 8) == shard


@pytest.mark.parametrize(("where", "message"), [("nothing > 1", "write a condition"), ("width", "write a comparison")])
def test_a_condition_that_cannot_be_evaluated_is_named(storage, where, message):
    with pytest.raises(InputError, match=rf"^curate\.where={where}: .*{message}"):
        judge(storage, read_manifest(storage).shards[0], Rules(CurateConfig(where=where)))


def test_a_file_of_hashes_must_hold_hashes(tmp_path):
    (tmp_path / "hashes.txt").write_text(f"{'0' * 64}\nabc\n")
    with pytest.raises(InputError, match="'abc' is not a sha256"):
        read_rules(CurateConfig(exclude_hashes=str(tmp_path / "hashes.txt")))


def test_of_equal_rows_the_first_in_order_stays():
    rows = pd.DataFrame({"hash": ["x", "y", "x"], "place": [2, 1, 0]})
    assert duplicates(rows, "hash", ["place"]).tolist() == [True, False, False]

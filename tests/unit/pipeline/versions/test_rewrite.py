"""A rewritten shard holds the selected samples, every row, and nothing of removed ones."""

import pytest

from pipeline.dataset.manifest import read_manifest, read_samples, read_sidecar
from pipeline.storage.address import open_storage
from pipeline.versions.curation import select
from pipeline.versions.rewrite import group_partitions, iter_samples, rewrite


@pytest.fixture
def storage(make_data_set, tmp_path):
    return open_storage(make_data_set(str(tmp_path / "data"), (6, 5)))


def keys_of(storage, shard):
    return read_samples(storage, shard, ["key"])["key"].to_pylist()


def test_two_shards_become_one_with_the_selected_samples_and_all_rows(storage, tmp_path):
    first, second = read_manifest(storage).shards
    chosen = select(storage, first, ["", "where", "", "where", "", ""])
    whole = rewrite(storage, [chosen, second], "new-000")
    wanted = keys_of(storage, chosen) + keys_of(storage, second)
    assert keys_of(storage, whole) == wanted
    assert [key for key, _ in iter_samples(storage, whole, tmp_path / "t.tar")] == wanted
    assert whole.num_rows == first.num_rows + second.num_rows
    assert read_sidecar(storage, whole)["reason"].to_pylist().count("curated") == 2


def test_nothing_but_the_key_of_a_removed_row_stays(storage):
    first, _ = read_manifest(storage).shards
    key = keys_of(storage, first)[1]
    new = rewrite(storage, [first], "new-000", removed=[key])
    (row,) = [row for row in read_sidecar(storage, new).to_pylist() if row["key"] == key]
    assert {name: value for name, value in row.items() if value} == {"key": key, "status": "dropped", "reason": "removed"}
    assert new.num_samples == 5


def test_neighbours_are_grouped_up_to_the_size_of_a_shard(storage):
    manifest = read_manifest(storage)
    assert [len(group) for group in group_partitions(manifest, 1 << 30)] == [2]
    assert [len(group) for group in group_partitions(manifest, 1)] == [1, 1]

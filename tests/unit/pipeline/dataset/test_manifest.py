"""Versions are added atomically and never edited."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.dataset import manifest as manifest_module
from pipeline.dataset.manifest import ManifestError, PartitionRecord, ShardRecord, commit, list_versions, read_manifest
from pipeline.errors import StorageAwayError
from pipeline.storage.address import open_storage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    return open_storage(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket"))


def record(number: int) -> PartitionRecord:
    shard = ShardRecord(
        name=f"p{number}-000",
        num_rows=10,
        num_samples=number,
        tar_size_bytes=1,
        tar_sha256="",
        sidecar_size_bytes=1,
        sidecar_sha256="",
    )
    return PartitionRecord(
        id=f"p{number}",
        input_path="t.csv",
        first_row=10 * number,
        num_rows=10,
        rows_sha256="",
        options_fingerprint="",
        counts={"success": number},
        shards=(shard,),
    )


def test_a_commit_adds_a_version_and_leaves_the_old_one(storage):
    first = commit(storage, [record(2), record(1)])
    second = commit(storage, [record(3)])
    assert (first.version, second.version) == (1, 2)
    assert list_versions(storage) == [1, 2]
    assert [partition.id for partition in read_manifest(storage).partitions] == ["p1", "p2", "p3"]
    assert read_manifest(storage, 1) == first
    assert second.num_samples == 6
    assert second.num_rows == 30
    assert first.identity != second.identity


def test_a_partition_is_never_in_twice(storage):
    commit(storage, [record(1)])
    assert commit(storage, [record(1)]).version == 1
    assert commit(storage, [record(1), record(2), record(2)]).version == 2
    assert len(read_manifest(storage).partitions) == 2


def test_of_commits_at_the_same_time_none_is_lost(storage):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: commit(storage, [record(number), record(99)]), range(6)))
    manifest = read_manifest(storage)
    assert sorted(partition.id for partition in manifest.partitions) == sorted([*(f"p{n}" for n in range(6)), "p99"])
    assert manifest.version == len(list_versions(storage)) <= 6


def test_no_data_set_and_no_such_version_say_what_to_do(storage):
    with pytest.raises(ManifestError, match=r"there is no data set; make one with jobs/ingest\.py"):
        read_manifest(storage)
    commit(storage, [record(1)])
    with pytest.raises(ManifestError, match=r"data\.version=7: .*has versions 1 to 1"):
        read_manifest(storage, 7)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "other"}', b'{"version": 1'])
def test_another_file_is_no_manifest(storage, content):
    storage.write("manifests/00000001.json", content)
    with pytest.raises(ManifestError, match="is not a manifest that this program can read"):
        read_manifest(storage)


def test_a_version_that_is_refused_but_never_listed_is_given_up(make_data_set, tmp_path, monkeypatch):
    storage = open_storage(make_data_set(str(tmp_path / "data"), (2,)))
    record = read_manifest(storage).partitions[0].model_copy(update={"id": "b" * 16, "first_row": 100})
    monkeypatch.setattr(manifest_module, "UNLISTED_PAUSE_S", 0)
    monkeypatch.setattr(storage, "write_if_absent", lambda path, data: False)
    with pytest.raises(StorageAwayError, match=r"00000002\.json: is there, says .* but is not listed"):
        commit(storage, [record])


@pytest.mark.parametrize(
    ("file", "named", "command"),
    [
        ("shards/00000.tar", "", "these are tars: make one with jobs/index.py index.input='{uri}' index.output=DATA"),
        ("shards/00000.tar", "shards/00000.tar", "jobs/index.py index.input='{uri}' index.output=DATA"),
        ("shards/00000.tar", "shards/{00000..00009}.tar", "jobs/index.py index.input='{uri}' index.output=DATA"),
        ("part-0.parquet", "", "these are tables: make one with jobs/ingest.py ingest.input='{uri}' ingest.output=DATA"),
        ("pairs.CSV.GZ", "pairs.CSV.GZ", "jobs/ingest.py ingest.input='{uri}' ingest.output=DATA"),
        ("a/b.JPG", "", "these are images: make one with jobs/ingest.py ingest.input="),
        ("readme.txt", "", "there is no data set; make one with jobs/ingest.py ingest.input=TABLE ingest.output={uri}"),
    ],
)
def test_what_is_no_data_set_yet_is_answered_with_the_command_that_makes_one(tmp_path, file, named, command):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    storage = open_storage(str(tmp_path / named))
    with pytest.raises(ManifestError) as caught:
        read_manifest(storage)
    assert command.replace("{uri}", storage.uri) in str(caught.value)

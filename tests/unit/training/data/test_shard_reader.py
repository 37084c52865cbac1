"""Samples are read by position; a shard that is missing, cut or changed is named, and so is a caption that is missing."""

import pytest

from pipeline.dataset.manifest import ManifestError, read_manifest
from pipeline.storage.address import open_storage
from tests.support.loaders import damage
from training.data.shard_reader import Damage, RawSample, ShardReader


def reader_of(uri, *captions) -> ShardReader:
    storage = open_storage(uri)
    return ShardReader(storage, read_manifest(storage), captions or ("caption",))


@pytest.fixture
def uri(make_data_set, tmp_path):
    return make_data_set(str(tmp_path / "set"))


def test_samples_of_chosen_positions_are_those_of_the_whole_shard(data_set):
    reader = reader_of(data_set)
    whole = reader.read(0, 0, 20)
    assert reader.read_run(0, [2, 3, 11, 19]) == [whole[place] for place in (2, 3, 11, 19)]
    assert reader.columns(0, ["shape"])["shape"].to_pylist() == [sample.caption.split()[2] for sample in whole]


def test_a_cut_shard_and_a_missing_one_are_named(uri):
    reader = reader_of(uri)
    tar = open_storage(uri).local_path(reader.manifest.shards[1].tar_path)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(ManifestError, match=rf"{tar.name}: ends at byte .*, before sample .* the shard was cut"):
        reader.read(1, 0, 13)
    found = reader.read_run(1, range(13))
    assert isinstance(found[0], RawSample), "the samples before the cut are still whole"
    assert isinstance(found[12], Damage)
    tar.unlink()
    with pytest.raises(ManifestError, match=rf"{tar.name}: the manifest names this shard and it is gone"):
        reader.read(1, 0, 13)


def test_a_changed_image_is_named(uri):
    (key,) = damage(uri, 1, 5)
    with pytest.raises(ManifestError, match=rf"\.tar: sample {key}: the image does not match the sha256 in its sidecar"):
        reader_of(uri).read(1, 0, 13)


def test_a_changed_sidecar_is_named(uri):
    reader = reader_of(uri)
    path = open_storage(uri).local_path(reader.manifest.shards[0].sidecar_path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ManifestError, match="its sha256 is not the manifest's"):
        reader.read(0, 0, 20)


def test_captions_come_from_other_columns_and_json_keys(data_set):
    assert {sample.caption for sample in reader_of(data_set, "shape").read(0, 0, 20)} == {"disc", "square", "bar", "ring"}
    addresses = [sample.caption for sample in reader_of(data_set, "json.url").read(0, 0, 20)]
    assert addresses == [f"http://e.org/{row}" for row in range(21) if row != 3]
    both = reader_of(data_set, "caption", "shape").read(0, 0, 20)
    assert all(len(sample.captions) == 2 and sample.captions[1] in sample.captions[0] for sample in both)


def test_a_column_or_a_caption_that_is_missing_is_answered_with_what_to_name_instead(data_set):
    with pytest.raises(ManifestError, match=r"column colour: .*shape; name one of them"):
        reader_of(data_set, "colour").read(0, 0, 20)
    with pytest.raises(ManifestError, match=r"has no caption in json\.title; name another place in data\.captions"):
        reader_of(data_set, "json.title").read(0, 0, 20)

"""Image sets give samples by their index, with captions or labels, from manifests and from folders."""

import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.loaders import keys_of
from training.evaluation.image_sets import FolderImageSet, ManifestImageSet, read_lines, read_several


def manifest_set(uri, captions=("caption",), label_column="") -> ManifestImageSet:
    storage = open_storage(uri)
    return ManifestImageSet(f"evaluation.zero_shot.uri={uri}", storage, read_manifest(storage), captions, label_column)


def test_slices_of_a_data_set_are_its_samples_in_order_across_shards(data_set):
    images = manifest_set(data_set)
    slices = [images.read(first, min(first + 15, 64)) for first in range(0, 64, 15)]
    assert [sample.key for part in slices for sample in part] == keys_of(data_set)


def test_columns_and_labels_are_those_of_the_samples(data_set):
    images = manifest_set(data_set, label_column="shape")
    labels = images.labels()
    assert images.columns(15, 50, ("shape", "key")) == {"shape": labels[15:50], "key": keys_of(data_set)[15:50]}
    assert all(label in sample.caption for label, sample in zip(labels, images.read(0, 64), strict=True))
    with pytest.raises(ConfigError, match=r"evaluation\.zero_shot\.label_column: is empty"):
        manifest_set(data_set).labels()


def test_folders_are_classes_in_alphabetical_order(tmp_path):
    for path, content in {"b/1.png": b"b1", "a/2.png": b"a2", "a/10.png": b"a10"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    images = FolderImageSet("key=address", open_storage(str(tmp_path)), ["b/1.png", "a/2.png", "a/10.png"])
    assert images.labels() == ["a", "a", "b"]
    assert [sample.image for sample in images.read(0, 3)] == [b"a10", b"a2", b"b1"]
    assert images.match_names(["a", "b"], ["cat", "dog"]) == {"a": "cat", "b": "dog"}
    assert images.match_names(["a", "b"], ["b", "a"]) == {"b": "b", "a": "a"}
    with pytest.raises(ConfigError, match="holds 2 folders of images, but 3 class names were given"):
        images.match_names(["a", "b"], ["cat", "dog", "cow"])


def test_lines_are_stripped_and_a_blank_one_in_between_is_refused(tmp_path):
    storage = open_storage(str(tmp_path))
    (tmp_path / "names.txt").write_text(" cat \ndog\n\n\n")
    assert read_lines(storage, "names.txt") == ("cat", "dog")
    assert read_lines(storage, "none.txt") == ()
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ConfigError, match=r"names\.txt: line 2 is blank"):
        read_lines(storage, "names.txt")


def test_several_reads_keep_their_order():
    assert read_several(str.encode, [str(number) for number in range(50)]) == [b"%d" % number for number in range(50)]

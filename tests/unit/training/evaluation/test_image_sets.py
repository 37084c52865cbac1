"""Image sets give samples by their index, with captions or labels, from manifests and from folders."""

import pyarrow as pa
import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.loaders import keys_of
from training.evaluation.class_folders import find_class_folders
from training.evaluation.image_sets import FolderImageSet, ManifestImageSet, read_several


def manifest_set(uri, captions=("caption",), label_column="") -> ManifestImageSet:
    storage = open_storage(uri)
    return ManifestImageSet(f"evaluation.zero_shot.uri={uri}", storage, read_manifest(storage), captions, label_column)


def test_slices_of_a_data_set_are_its_samples_in_order_across_shards(data_set):
    images = manifest_set(data_set)
    slices = [images.read(first, min(first + 15, 64)) for first in range(0, 64, 15)]
    assert [sample.key for part in slices for sample in part] == keys_of(data_set)


def test_a_caption_that_several_columns_hold_is_one_query(data_set):
    storage = open_storage(data_set)
    images = ManifestImageSet("s", storage, read_manifest(storage), ("caption", "json.caption", "shape"))
    assert [len(sample.captions) for sample in images.read(0, 3)] == [2, 2, 2]


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
    storage = open_storage(str(tmp_path))
    folders = find_class_folders("key=address", storage, ["b/1.png", "a/2.png", "a/10.png"])
    images = FolderImageSet("key=address", storage, folders)
    assert images.labels() == ["a", "a", "b"]
    assert images.label_kind(["a", "b"]) == "folder"
    assert [sample.image for sample in images.read(0, 3)] == [b"a10", b"a2", b"b1"]


def test_labels_of_a_column_are_text_and_whole_numbers_have_no_fraction(data_set, monkeypatch):
    def labels_of(*values, kind=None):
        column = pa.chunked_array([pa.array(values, kind)])
        monkeypatch.setattr("training.evaluation.image_sets.ShardReader.columns", lambda *_: {"class": column})
        images = manifest_set(data_set, label_column="class")
        found = images.labels()[: len(values)]
        return images.label_kind(found), found

    assert labels_of(3, 0) == ("number", ["3", "0"])
    assert labels_of(3.0, 0.0) == ("number", ["3", "0"])
    assert labels_of("3", "0") == ("number", ["3", "0"])
    assert labels_of("3", "cat") == ("text", ["3", "cat"])
    assert labels_of("cat\r", " dog") == ("text", ["cat", "dog"])
    assert labels_of(b"cat", b"caf\xc3\xa9") == ("text", ["cat", "café"])
    assert labels_of("cat", "dog", kind=pa.dictionary(pa.int8(), pa.string())) == ("text", ["cat", "dog"])
    assert labels_of(b"cat\0\0", b"otter", kind=pa.binary(5)) == ("text", ["cat", "otter"])
    assert labels_of(b"cat", b" dog", kind=pa.large_binary()) == ("text", ["cat", "dog"])
    for kind in (pa.string_view(), pa.large_binary(), pa.binary()):
        with pytest.raises(ConfigError, match=r"1 samples of .* have no class"):
            labels_of(*(value if kind == pa.string_view() else value.encode() for value in (" ", "cat")), kind=kind)
    for values, message in {
        (1.5, 0.0): "holds 1.5, which is not the number of a class",
        (float("nan"), 0.0): "1 samples of .* have no class",
        (None, "cat"): "1 samples of .* have no class",
        (" ", "cat"): "1 samples of .* have no class",
        (("cat",), ("dog",)): "holds lists or structures",
        (b"caf\xe9", b"cat"): "not UTF-8",
        ("1", "1.0"): "holds 1 and 1.0, one number in two forms; write the numbers in one form",
        ("True", "true"): "holds True and true, one value in two forms; write the values in one form",
        ("07", "7"): "holds 07 and 7, one number in two forms",
    }.items():
        with pytest.raises(ConfigError, match=message):
            labels_of(*values)


def test_several_reads_keep_their_order():
    assert read_several(str.encode, [str(number) for number in range(50)]) == [b"%d" % number for number in range(50)]

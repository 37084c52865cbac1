"""Samples of a data set's version: all of them, those that meet conditions, and never one that was changed in silence."""

import pickle

import pyarrow as pa
import pytest

import rayclip
from pipeline.dataset.manifest import read_manifest, read_samples
from pipeline.storage.address import open_storage


def test_samples_are_those_of_the_sidecars_in_order(data_set):
    storage = open_storage(data_set)
    manifest = read_manifest(storage)
    rows = [
        row for shard in manifest.shards for row in read_samples(storage, shard, ["key", "url", "caption", "shape"]).to_pylist()
    ]
    data = rayclip.DataSet(data_set)
    samples = list(data.samples(columns=["shape", "width"]))
    assert (len(data), data.version, data.uri) == (64, 1, data_set)
    assert [(sample.key, sample.url, *sample.captions) for sample in samples] == [
        (row["key"], row["url"], row["caption"]) for row in rows
    ]
    assert [sample.columns for sample in samples] == [{"shape": row["shape"], "width": 40} for row in rows]
    assert all(sample.image.startswith(b"\x89PNG") for sample in samples)
    assert not next(data.samples()).columns
    assert {"key", "url", "caption", "shape", "width"} <= set(data.columns)


def test_a_condition_chooses_samples_and_conditions_add_up(data_set):
    data = rayclip.DataSet(data_set)
    discs = data.filter("shape == 'disc'")
    red = discs.filter("caption.str.contains('red')")
    expected = [sample.key for sample in data.samples(["shape"]) if sample.columns["shape"] == "disc"]
    assert [sample.key for sample in discs.samples()] == expected
    assert 0 < len(red) < len(discs) == len(expected) < len(data) == 64
    assert all("red disc" in sample.captions[0] for sample in red.samples())
    assert repr(red).endswith(""".filter("shape == 'disc'").filter("caption.str.contains('red')")>""")
    assert len(data.filter("width > 99")) == 0
    assert list(data.filter("width > 99").samples()) == []
    assert open_storage(data_set).exists("manifests/00000001.json")
    assert not open_storage(data_set).exists("manifests/00000002.json"), "no version is written"


def test_a_condition_on_scores_reads_the_features_that_hold_them(make_data_set, tmp_path):
    from tests.unit.pipeline.dataset.test_features import embed

    storage = open_storage(make_data_set(str(tmp_path / "shapes"), (6, 5)))
    embed(storage, open_storage(str(tmp_path / "features")), read_manifest(storage))
    found = rayclip.DataSet(storage.uri).filter("clip_score > 0.02", features=tmp_path / "features")
    assert [sample.key[-1] for sample in found.samples()] == ["4", "5", "6", "4", "5"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "the condition is empty"),
        ("shap == 'disc'", "filter: shap == 'disc': name 'shap' is not defined"),
        ("width > 'a'", "filter: width > 'a': "),
        ("width +", "cannot be read"),
    ],
)
def test_a_condition_that_cannot_be_evaluated_is_refused_at_once(data_set, condition, message):
    with pytest.raises(rayclip.InputError) as error:
        rayclip.DataSet(data_set).filter(condition)
    assert message in str(error.value)


def test_unknown_columns_versions_and_places_are_refused(data_set, tmp_path):
    data = rayclip.DataSet(data_set)
    with pytest.raises(rayclip.InputError, match=r"^column shap: .* did you mean shape\? It has key, url"):
        next(data.samples(["shap"]))
    with pytest.raises(rayclip.InputError, match="give a list of names"):
        next(data.samples("shape"))
    with pytest.raises(rayclip.InputError, match="has versions 1 to 1, not this one"):
        rayclip.DataSet(data_set, version=3)
    with pytest.raises(rayclip.InputError, match="there is no data set"):
        rayclip.DataSet(tmp_path / "none")


def test_a_changed_image_and_a_missing_shard_are_errors(make_data_set, tmp_path):
    storage = open_storage(make_data_set(str(tmp_path / "shapes"), (6, 5)))
    first, second = read_manifest(storage).shards
    tar = storage.local_path(first.tar_path)
    data = bytearray(tar.read_bytes())
    data[read_samples(storage, first, ["jpg_offset"])["jpg_offset"][2].as_py() + 30] ^= 1
    tar.write_bytes(data)
    samples = rayclip.DataSet(storage.uri).samples()
    with pytest.raises(rayclip.InputError, match="does not match the sha256"):
        list(samples)
    storage.local_path(second.tar_path).unlink()
    with pytest.raises(rayclip.InputError, match="is gone; restore it"):
        list(rayclip.DataSet(storage.uri).read(1, [0, 1]))


def test_a_copy_in_another_process_is_the_same(data_set):
    data = rayclip.DataSet(data_set).filter("shape == 'disc'")
    before = [sample.key for sample in data.samples()]
    copy = pickle.loads(pickle.dumps(data))
    assert [sample.key for sample in copy.samples()] == before


def test_tables_for_ray_have_one_schema_and_all_samples(data_set):
    data = rayclip.DataSet(data_set).filter("shape != 'disc'")
    tables = [table for number in range(3) for table in data.tables(number, ["shape"])]
    assert len({str(table.schema) for table in tables}) == 1
    whole = pa.concat_tables(tables)
    assert whole.num_rows == len(data)
    assert whole.schema.names == ["key", "url", "captions", "image", "shape"]
    assert whole["captions"].to_pylist() == [list(sample.captions) for sample in data.samples()]


def test_a_column_that_a_shard_lacks_is_null_and_keeps_its_type_elsewhere(make_data_set, tmp_path, monkeypatch):
    data = rayclip.DataSet(make_data_set(str(tmp_path / "shapes"), (2,)))
    monkeypatch.setattr(rayclip.DataSet, "columns", ("key", "lang"))
    assert [sample.columns for sample in data.samples(["lang"])] == [{"lang": None}, {"lang": None}]
    (table,) = data.tables(0, ["width", "lang"])
    assert table.schema.field("width").type == pa.int32()
    assert table["lang"].to_pylist() == [None, None]


def test_a_sample_is_found_by_its_index(data_set):
    whole = rayclip.DataSet(data_set)
    assert whole.place(63) == (2, 30)
    data = whole.filter("shape == 'disc'")
    keys = [sample.key for sample in data.samples()]
    places = [data.place(index) for index in range(len(data))]
    assert [next(data.read(number, [position])).key for number, position in places] == keys


def test_a_data_set_in_object_storage_is_read(make_data_set, bucket):
    data = rayclip.DataSet(make_data_set(f"{bucket}/pairs", (5,)))
    assert len(list(data.samples())) == 5

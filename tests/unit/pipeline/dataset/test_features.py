"""Files of features: of one model, whole or not there, and found again by shard and key, also from other versions."""

import hashlib
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import CurateConfig, IndexConfig
from pipeline.dataset.features import (
    EmbeddedData,
    Embedding,
    EmbeddingModel,
    ImageFeatures,
    Scores,
    claim_output,
    feature_name,
    feature_path,
    file_of,
    finish_output,
    names_held,
    read_embedding,
    write_features,
)
from pipeline.dataset.manifest import commit, commit_choice, read_manifest, read_samples, read_selection, read_sidecar
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.curation import judge, read_rules, select
from pipeline.versions.foreign_tars import index_tar
from pipeline.versions.rewrite import rewrite
from tests.support.tars import packed, pairs

DIM = 4


def describe(data, manifest, **model):
    about = {
        "address": "runs/a",
        "name": "debug-vit",
        "activation": "gelu",
        "image_size_px": 32,
        "weights_sha256": "aa",
    } | model
    return Embedding(
        model=EmbeddingModel(**about | model),
        data=EmbeddedData(uri=data.uri, version=manifest.version, identity=manifest.identity),
        captions=("caption",),
        precision="float32",
        dtype="float32",
        embed_dim=DIM,
    )


def score_of(key):
    """A score that a test can foretell: the row's number in hundredths."""
    return int(key.rpartition("-")[2]) / 100


def embed(data, output, manifest, damaged=(), shards=None):
    """What jobs/embed.py does, with scores that are made up."""
    claim_output(output, describe(data, manifest))
    for shard in (one for one in shards or manifest.shards if one.num_samples):
        named = read_samples(data, shard, ["key", "url"])
        keys, urls = named["key"].to_pylist(), named["url"].to_pylist()
        features = np.arange(len(keys) * DIM, dtype=np.float32).reshape(-1, DIM)
        scores = np.array([score_of(key) for key in keys], np.float32)
        write_features(output, shard, keys, urls, (features, -features, scores), damaged, "float32")


@pytest.fixture
def data(make_data_set, tmp_path):
    storage = open_storage(make_data_set(str(tmp_path / "shapes"), (6, 5, 0, 7)))
    return storage, read_manifest(storage)


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    return open_storage(str(tmp_path / "features") if request.param == "local" else f"{request.getfixturevalue('bucket')}/f")


def choose(data, where, scores, version="latest"):
    """A version of the samples that fulfil a condition, as jobs/curate.py makes it, without Ray."""
    rules = read_rules(CurateConfig(data=data.uri, where=where, scores=scores.uri))
    base = read_manifest(data, version)
    rules.scores.check(data, base)
    chosen = []
    for partition in base.partitions:
        shards = tuple(
            select(data, shard, judge(data, shard, rules)[0]) if shard.num_samples else shard for shard in partition.shards
        )
        if shards != partition.shards:
            chosen.append(partition.model_copy(update={"shards": shards}))
    return commit_choice(data, base, chosen)


def numbers(data, manifest):
    keys = [read_samples(data, shard, ["key"])["key"].to_pylist() for shard in manifest.shards if shard.num_samples]
    return [[int(key.rpartition("-")[2]) for key in one] for one in keys]


def test_a_file_is_what_was_written_and_null_where_a_sample_is_damaged(data, output, tmp_path):
    storage, manifest = data
    embed(storage, output, manifest, damaged=(1, 4), shards=manifest.shards[:1])
    shard = manifest.shards[0]
    (tmp_path / "copy.parquet").write_bytes(output.read(feature_path(shard.name)))
    rows = pq.read_table(tmp_path / "copy.parquet").to_pylist()
    assert [row["key"] for row in rows] == read_samples(storage, shard, ["key"])["key"].to_pylist()
    assert [place for place, row in enumerate(rows) if row["clip_score"] is None] == [1, 4]
    assert list(rows[1]) == ["key", "url", "image_features", "text_features", "clip_score"]
    assert [rows[1][name] for name in list(rows[1])[1:]] == ["http://e.org/1", None, None, None]
    assert rows[2]["image_features"] == [8.0, 9.0, 10.0, 11.0]
    assert rows[2]["text_features"] == [-8.0, -9.0, -10.0, -11.0]
    scores = Scores(output).of(storage, shard, [row["key"] for row in rows])
    assert [place for place, score in enumerate(scores) if math.isnan(score)] == [1, 4]


def test_half_precision_halves_a_file(data, output):
    shard, sizes = data[1].shards[0], {}
    for dtype in ("float16", "float32"):
        features = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
        write_features(output, shard, list("abcdef"), [None] * 6, (features, features, features[:, 0]), (), dtype)
        sizes[dtype] = output.size(feature_path(shard.name))
    assert 0.4 < sizes["float16"] / sizes["float32"] < 0.6


@pytest.mark.parametrize(
    ("change", "path"),
    [({"weights_sha256": "bb"}, "model.weights_sha256"), ({"activation": "quick_gelu"}, "model.activation")],
)
def test_another_model_is_refused(data, output, change, path):
    storage, manifest = data
    claim_output(output, describe(storage, manifest))
    claim_output(output, describe(storage, manifest, address="a copy of the weights"))
    with pytest.raises(InputError) as error:
        claim_output(output, describe(storage, manifest, **change))
    assert f"embed.output={output.uri}: holds features with {path}=" in str(error.value)
    assert "choose another embed.output" in str(error.value)


def test_settings_that_change_the_features_are_refused(data, output):
    storage, manifest = data
    claim_output(output, describe(storage, manifest))
    for change in ({"dtype": "float16"}, {"captions": ("json.alt",)}, {"precision": "bfloat16"}):
        with pytest.raises(InputError, match=f"holds features with {next(iter(change))}="):
            claim_output(output, describe(storage, manifest).model_copy(update=change))


def test_the_record_names_the_files_of_the_version_once_they_are_there(data, output):
    storage, manifest = data
    embed(storage, output, manifest, shards=manifest.shards[:1])
    assert read_embedding(output).files == ()
    with pytest.raises(InputError, match="is gone; run the job again"):
        finish_output(output, describe(storage, manifest), manifest)
    embed(storage, output, manifest)
    finish_output(output, describe(storage, manifest), manifest)
    assert read_embedding(output).files == tuple(feature_path(shard.name) for shard in manifest.shards if shard.num_samples)


def test_a_record_that_is_none_is_named(output):
    with pytest.raises(InputError, match="holds no features; make them with"):
        read_embedding(output)
    output.write("embedding.json", b"{}")
    with pytest.raises(InputError, match="is not a record that this program can read"):
        read_embedding(output)


def test_a_condition_on_the_score_leaves_exactly_the_right_samples(data, output):
    storage, manifest = data
    embed(storage, output, manifest, damaged=(0,))
    chosen = choose(storage, "clip_score > 0.02 and caption.str.len() > 0", output)
    expected = [[n for n in shard[1:] if n > 2] for shard in numbers(storage, manifest)]
    assert numbers(storage, chosen) == expected, "a damaged sample has no score, so it fulfils no condition on it"


def test_scores_are_asked_again_of_what_they_have_left(data, output):
    storage, manifest = data
    embed(storage, output, manifest)
    chosen = choose(storage, "clip_score > 0.01", output)
    stricter = choose(storage, "clip_score > 0.045", output)
    assert numbers(storage, stricter) == [[n for n in shard if n > 4] for shard in numbers(storage, chosen)]


def test_scores_of_a_choice_serve_its_choices_and_not_the_whole(data, output, tmp_path):
    storage, manifest = data
    whole = open_storage(str(tmp_path / "whole"))
    embed(storage, whole, manifest)
    chosen = choose(storage, "clip_score > 0.01", whole)
    embed(storage, output, chosen)
    assert names_held(output) == {feature_name(shard) for shard in chosen.shards if shard.num_samples}
    assert all(file_of(shard, names_held(output)) is None for shard in manifest.shards if shard.num_samples)
    with pytest.raises(InputError, match=f"has no features for 3 of the 3 shards of {storage.uri} version 1") as error:
        Scores(output).check(storage, manifest)
    assert f"they are of {storage.uri} version 2" in str(error.value)
    stricter = choose(storage, "clip_score > 0.045", output)
    assert numbers(storage, stricter) == [[n for n in shard if n > 4] for shard in numbers(storage, chosen)]


def test_a_version_with_samples_that_have_no_score_is_refused(data, output):
    storage, manifest = data
    embed(storage, output, manifest, shards=manifest.shards[:2])
    with pytest.raises(InputError, match=r"has no features for 1 of the 3 shards .* which embeds what is missing"):
        choose(storage, "clip_score > 0.02", output)
    with pytest.raises(InputError, match="lacks samples of shard"):
        Scores(output).of(storage, manifest.shards[0], ["another key"])


def test_a_score_column_of_the_input_table_is_not_overwritten(data, output):
    storage, manifest = data
    embed(storage, output, manifest)
    shard = manifest.shards[0]
    table = read_sidecar(storage, shard)
    pq.write_table(table.append_column("clip_score", [[0.5] * len(table)]), storage.local_path(shard.sidecar_path))
    digest = hashlib.sha256(storage.read(shard.sidecar_path)).hexdigest()
    rules = read_rules(CurateConfig(data=storage.uri, where="clip_score > 0", scores=output.uri))
    with pytest.raises(InputError, match="already have a column clip_score, from the input table"):
        judge(storage, shard.model_copy(update={"sidecar_sha256": digest}), rules)


def test_reading_scores_from_object_storage_leaves_the_features_there(data, bucket, monkeypatch):
    storage, manifest = data
    output = open_storage(f"{bucket}/large")
    shard = manifest.shards[0]
    claim_output(output, describe(storage, manifest))
    keys = read_samples(storage, shard, ["key"])["key"].to_pylist()
    features = np.random.default_rng(0).normal(size=(6, 100_000)).astype(np.float32)
    write_features(output, shard, keys, [None] * len(keys), (features, features, features[:, 0]), (), "float32")
    read, read_range = [], output.read_range
    monkeypatch.setattr(output, "read_range", lambda *where: read.append(len(data := read_range(*where))) or data)
    assert Scores(output).of(storage, shard, keys) == pytest.approx(features[:, 0].tolist())
    assert sum(read) < output.size(feature_path(shard.name)) / 20


def test_of_samples_with_one_key_each_has_its_own_score(tmp_path, draw_shape, output):
    """A compact shard of an earlier release may hold the samples of tars that count from zero."""
    storage = open_storage(str(tmp_path / "indexed"))
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(packed(pairs(draw_shape("red", "disc", number), "0", "1", "2")))
    config = IndexConfig(output=storage.uri)
    manifest = commit(storage, [index_tar(str(tmp_path / f"{number}.tar"), config) for number in range(2)])
    first, second = manifest.partitions
    compact = rewrite(storage, list(manifest.shards), "compact-000")
    changed = [first.model_copy(update={"shards": (compact,)}), second.model_copy(update={"shards": ()})]
    manifest = commit_choice(storage, manifest, changed)
    claim_output(output, describe(storage, manifest))
    keys, scores = ["0", "1", "2"] * 2, np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.7], np.float32)
    features = np.ones((6, DIM), np.float32)
    write_features(output, compact, keys, [None] * len(keys), (features, features, scores), (), "float32")
    chosen = choose(storage, "clip_score > 0.5", output)
    assert [place.as_py() for place in read_selection(storage, chosen.shards[0].selection)] == [3, 4, 5]
    fewer = choose(storage, "clip_score < 0.85", output)
    write_features(output, chosen.shards[0], keys[:3], [None] * 3, (features[:3], features[:3], -scores[3:]), (), "float32")
    assert Scores(output).of(storage, fewer.shards[0], ["1", "2"]) == pytest.approx([0.8, 0.7])
    assert Scores(output).of(storage, compact, keys) == pytest.approx(scores.tolist())


def test_scores_of_a_selection_that_is_gone_are_not_used(data, output, tmp_path):
    storage, manifest = data
    whole = open_storage(str(tmp_path / "whole"))
    embed(storage, whole, manifest)
    chosen = choose(storage, "clip_score > 0.01", whole)
    embed(storage, output, chosen)
    stricter = choose(storage, "clip_score > 0.03", whole)
    shard = stricter.shards[0]
    keys = read_samples(storage, shard, ["key"])["key"].to_pylist()
    assert Scores(output).of(storage, shard, keys) == pytest.approx([score_of(key) for key in keys])
    storage.delete(chosen.shards[0].selection.path)
    with pytest.raises(InputError, match="lacks samples of shard"):
        Scores(output).of(storage, shard, keys)


def test_image_features_are_found_in_files_with_and_without_urls_and_of_selections(data, output):
    storage, manifest = data
    embed(storage, output, manifest, damaged=(1,))
    older = output.local_path(feature_path(manifest.shards[0].name)) if output.local_path("") else None
    if older is not None:  # as written by earlier versions
        pq.write_table(pq.read_table(older).drop(["url"]), older)
    stored = ImageFeatures(output)
    stored.check(storage, manifest)
    keys = read_samples(storage, manifest.shards[0], ["key"])["key"].to_pylist()
    whole = stored.of(storage, manifest.shards[0], keys)
    assert whole.dtype == np.float32
    assert np.isnan(whole).all(axis=1).tolist() == [False, True, False, False, False, False]
    assert whole[2].tolist() == [8.0, 9.0, 10.0, 11.0]
    chosen = choose(storage, "clip_score > 0.03", output)
    shard = chosen.shards[0]
    keys = read_samples(storage, shard, ["key"])["key"].to_pylist()
    assert 0 < len(keys) < 6
    assert np.array_equal(ImageFeatures(output).of(storage, shard, keys), whole[-len(keys) :])
    assert stored.of(storage, manifest.shards[0], []).shape == (0, DIM)


def test_features_of_fewer_shards_are_refused_for_a_search(data, output):
    storage, manifest = data
    embed(storage, output, manifest, shards=manifest.shards[:1])
    with pytest.raises(InputError, match=r"^--features=.*: has no features for 2 of the 3 shards"):
        ImageFeatures(output).check(storage, manifest)

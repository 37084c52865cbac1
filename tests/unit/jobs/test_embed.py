"""Embedding without Ray: what is refused, how large the pool is, and what is made of what comes back."""

import json
import logging
import math

import pyarrow.parquet as pq
import pytest
import torch

from jobs import embed
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.cli.embed_config import EmbedConfig
from jobs.embed import Done, embed_shard, follow, plan_pool
from model.clip import build_clip
from model.weights import save_weights
from pipeline.dataset.features import feature_path
from pipeline.dataset.manifest import read_manifest, read_samples
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from tests.support.odd_s3 import ignores
from training.config import TrainConfig
from training.data.shard_reader import ShardReader
from training.errors import RunError
from training.shard_embedder import ShardEmbedder


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(build_clip("debug-vit"), tmp_path / "debug.safetensors")
    return str(tmp_path / "debug.safetensors")


def test_bad_input_is_refused_before_ray_starts(data_set, make_data_set, weights, tmp_path, capsys, monkeypatch):
    def refuse(_cluster):
        raise AssertionError("Ray was started for bad input")

    monkeypatch.setattr(embed, "connect_ray", refuse)
    data, output, model = f"embed.data={data_set}", f"embed.output={tmp_path}/features", ("--weights", weights)
    empty = make_data_set(str(tmp_path / "empty"), (0,))
    held = open_storage(f"{tmp_path}/held")
    other = {"address": "runs/b", "name": "debug-vit", "activation": "gelu", "image_size_px": 32, "weights_sha256": "bb"}
    about = {"uri": data_set, "version": 1, "identity": "x"}
    settings = {"captions": ["caption"], "precision": "auto", "dtype": "float16", "embed_dim": 32}
    held.write("embedding.json", json.dumps({"model": other, "data": about, **settings}).encode())
    name = "model.name=debug-vit"
    cases = {
        (output,): "embed.data: is empty; name a folder",
        (data,): "embed.output: is empty; name a folder",
        (data, output, "embed.dtype=int8"): "embed.dtype='int8'",
        (data, output, "embed.num_workers=[4, 2]"): "num_workers=[4, 2]: is [min, max]; give the smaller first",
        (f"embed.data={empty}", output, *model, name): "holds no samples; name a data set that does",
        (data, output, "embed.version=7", *model, name): "has versions 1 to 1, not this one",
        (data, output, f"run.dir={tmp_path}"): "holds no checkpoint; name a trained run",
        (data, output, "--weights", "none.pt"): "there is no such file",
        (data, output, *model, "model.name=ViT-B/32"): "does not fit ViT-B/32",
        (data, f"embed.output={held.uri}", *model, name): "holds features with model.weights_sha256=bb (of runs/b",
    }
    for arguments, message in cases.items():
        assert run(embed.arguments(), embed.job, list(arguments)) == EXIT_BAD_INPUT, arguments
        assert message in capsys.readouterr().err, arguments
    assert not (tmp_path / "features").exists(), "an output was begun for input that was refused"


@pytest.mark.parametrize(
    ("settings", "resources", "units", "expected"),
    [
        ({}, {"CPU": 2}, 100, (1, 2, 2, 1, False)),
        ({}, {"CPU": 64}, 3, (1, 3, 3, 1, False)),
        ({"cpus_per_worker": 4}, {"CPU": 10}, 100, (1, 2, 2, 4, False)),
        ({"cpus_per_worker": 4}, {"CPU": 2}, 100, (1, 1, 1, 4, False)),
        ({}, {"CPU": 64, "GPU": 8}, 100, (1, 8, 8, 8, True)),
        ({"use_gpu": False}, {"CPU": 64, "GPU": 8}, 100, (1, 64, 64, 1, False)),
        ({"num_workers": (4, 64)}, {"CPU": 32, "GPU": 8}, 100, (4, 8, 64, 4, True)),
        ({"num_workers": (4, 64)}, {"CPU": 2}, 100, (4, 4, 64, 1, False)),
        ({"num_workers": 6}, {"CPU": 2}, 100, (6, 6, 6, 1, False)),
        ({"num_workers": 6}, {"CPU": 16}, 2, (2, 2, 2, 1, False)),
    ],
)
def test_the_pool_is_as_large_as_the_cluster_and_the_work(settings, resources, units, expected):
    pool = plan_pool(EmbedConfig(**settings), resources, units)
    assert (pool.least, pool.first, pool.most, pool.cpus, pool.use_gpu) == expected


def embedder(uri, skip_damaged):
    storage = open_storage(uri)
    torch.manual_seed(0)
    reader = ShardReader(storage, read_manifest(storage))
    return ShardEmbedder(build_clip("debug-vit"), reader, torch.device("cpu"), TrainConfig(), 8, 1, skip_damaged)


def test_a_damaged_shard_is_an_error_or_has_a_hole_and_a_storage_that_refuses_is_an_error(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "shapes"), (12,))
    storage, output = open_storage(uri), open_storage(str(tmp_path / "features"))
    shard = read_manifest(storage).shards[0]
    tar = storage.local_path(shard.tar_path)
    data = bytearray(tar.read_bytes())
    data[read_samples(storage, shard, ["jpg_offset"]).to_pylist()[5]["jpg_offset"] + 30] ^= 1
    tar.write_bytes(data)

    strict = embed_shard(embedder(uri, skip_damaged=False), output, "float32", 0)
    assert "restore it (or skip such samples: data.on_damage=skip)" in strict.error
    assert not output.exists(feature_path(shard.name))

    lenient = embed_shard(embedder(uri, skip_damaged=True), output, "float32", 0)
    assert not lenient.error
    assert len(lenient.problems) == 1
    assert f"{shard.name}.tar: sample " in lenient.problems[0]
    scores = pq.read_table(output.local_path(feature_path(shard.name)))["clip_score"].to_pylist()
    assert [place for place, score in enumerate(scores) if score is None] == [5]
    assert lenient.score_sum == pytest.approx(sum(score for score in scores if score is not None), abs=1e-5)
    assert 0 < lenient.forward_s < lenient.ended_s - lenient.began_s

    refused = embed_shard(embedder(uri, skip_damaged=True), open_storage(f"{tar}/below"), "float32", 0)
    assert "cannot be written" in refused.error


def no_file_goes(shard):
    raise AssertionError(shard)


def test_what_comes_back_is_summed_up():
    done = [
        Done(shard=1, score_sum=3.0, decode_s=0.1, forward_s=1.0),
        Done(shard=4, score_sum=1.0, decode_s=0.1, forward_s=1.0),
    ]
    text = follow(iter(done), {1: 10, 4: 10}, max_skipped_samples=0, forget=no_file_goes)
    assert "20 samples in 2 shards, in " in text
    assert "mean clip_score 0.2000" in text
    assert "10.00 ms of a decoding thread and 100.00 ms of the model" in text


def test_damage_is_named_and_more_of_it_than_allowed_ends_the_run(caplog):
    forgotten = []
    done = [Done(shard=0, problems=["tar: sample a: cut", "tar: sample b: cut"], score_sum=4.0), Done(shard=1, score_sum=4.0)]
    with caplog.at_level(logging.WARNING):
        text = follow(iter(done), {0: 10, 1: 10}, max_skipped_samples=2, forget=no_file_goes)
    assert "damaged sample no. 2: tar: sample b: cut" in caplog.text
    assert "20 samples in 2 shards, 2 of them damaged and without features" in text
    assert f"mean clip_score {8 / 18:.4f}" in text
    with pytest.raises(InputError, match=r"data\.max_skipped_samples=1: one more sample is damaged \(tar: sample b: cut\)"):
        follow(iter(done), {0: 10, 1: 10}, max_skipped_samples=1, forget=forgotten.append)
    assert forgotten == [0], "or the next run would take its empty features for done"
    all_bad = follow(iter([Done(shard=0, problems=["a"])]), {0: 1}, max_skipped_samples=1, forget=no_file_goes)
    assert f"mean clip_score {math.nan}" in all_bad


def test_an_error_ends_the_run_and_a_shard_that_does_not_come_back_is_an_error():
    with pytest.raises(InputError, match=r"t\.tar is gone; restore it"):
        follow(iter([Done(shard=0, error="t.tar is gone; restore it")]), {0: 10}, max_skipped_samples=0, forget=no_file_goes)
    full = Done(shard=0, error="make room", may_pass=True)
    with pytest.raises(RunError, match="make room"):
        follow(iter([full]), {0: 10}, max_skipped_samples=0, forget=no_file_goes)
    with pytest.raises(RunError, match=r"1 shards are missing, no\. 3 among them; run the job again"):
        follow(iter([Done(shard=0)]), {0: 10, 3: 10}, max_skipped_samples=0, forget=no_file_goes)


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_store_without_put_if_absent_is_refused_before_any_work(store, data_set, weights, capsys):
    arguments = [f"embed.data={data_set}", "embed.output=s3://bucket/features", "--weights", weights, "model.name=debug-vit"]
    assert run(embed.arguments(), embed.job, arguments) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{store.address} (server: OddStore/1.0) does not keep put-if-absent" in said
    assert "embed.single_writer=NAME" in said
    assert not store.objects


def test_a_misspelled_place_of_captions_is_refused_before_anything_is_written(data_set, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embed, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))
    output = tmp_path / "features"
    settings = (f"embed.data={data_set}", f"embed.output={output}", "data.captions=[shap]", "run.name=none")
    assert run(embed.arguments(), embed.job, ["--config", "debug_cpu", *settings]) == EXIT_BAD_INPUT
    assert "(did you mean shape?)" in capsys.readouterr().err
    assert not output.exists()

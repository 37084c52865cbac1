"""jobs/search.py in this process: what it prints and writes, and what it refuses before any image is read."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import search
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_DONE, EXIT_NOT_MEANT, run
from jobs.embed import embed_shard
from model.weights import save_weights
from pipeline.dataset.features import EmbeddedData, Embedding, EmbeddingModel, claim_output
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.models import random_clip
from tests.support.runs import ALONE, config_of
from training.config import TrainConfig
from training.data.shard_reader import ShardReader
from training.shard_embedder import ShardEmbedder, weights_sha256
from training.trainer import train

NAMES = ("a red \u00e9 bicycle.png", "inner/<b>&.png", "new\nline.png")


def image(seed: int) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(colours).resize((60, 48), Image.Resampling.BICUBIC).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    save_weights(random_clip("debug-vit"), path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Three images of odd names, a broken one, and a query that is none of them."""
    place = tmp_path / "my images"
    for seed, name in enumerate(NAMES):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(image(seed))
    (place / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "query.png").write_bytes(image(1))
    return place


def call(*words) -> int:
    return run(search.arguments(), search.job, [*map(str, words), "train.device=cpu"])


def test_a_folder_is_searched_for_an_image_and_the_broken_one_is_named(folder, weights, tmp_path, capsys):
    page, hits = tmp_path / "page.html", tmp_path / "hits.json"
    query = ("--image", tmp_path / "query.png", "--top", 2, "--page", page, "--json", hits)
    assert call(folder, "--weights", weights, *query) == EXIT_DONE
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"3 images compared by debug-vit of {weights}"
    assert lines[1].split() == ["score", "key", "file", "or", "URL", "caption"]
    assert lines[2].split()[:2] == ["1.0000", "inner/<b>&.png"]
    assert len([line for line in lines if line.startswith(("0.", "1.", "-0."))]) == 2
    assert f"skipped: {folder}/broken.jpg: the image cannot be decoded" in printed.err
    assert "1 of 4 images cannot be read and were skipped" in printed.err
    found = json.loads(hits.read_text())
    assert found["hits"][0] | {"score": 0} == {
        "score": 0,
        "key": NAMES[1],
        "address": str(folder / NAMES[1]),
        "caption": "",
    }
    assert (found["num_images"], len(found["hits"]), len(found["problems"])) == (3, 2, 1)
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert "<b>&.png" not in text
    assert "inner/&lt;b&gt;&amp;.png" in text


def test_json_alone_is_printed_and_a_text_finds_the_same_as_the_model(folder, weights, capsys):
    assert call(folder, "--weights", weights, "--text", "a red bicycle", "--json", "-") == EXIT_DONE
    printed = capsys.readouterr()
    found = json.loads(printed.out)["hits"]
    scores = [hit["score"] for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert sorted(hit["key"] for hit in found) == sorted(NAMES)


def test_a_table_has_a_line_for_each_hit_whatever_its_name(folder, weights, capsys):
    assert call(folder, "--weights", weights, "--text", "a") == EXIT_DONE
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_run_is_searched_with_by_its_name(folder, data_set, tmp_path, capsys):
    train(config_of(data_set, tmp_path / "runs", "train.max_steps=2", "optimizer.warmup_steps=1"), ALONE)
    capsys.readouterr()
    run_dir = f"run.dir={tmp_path}/runs"
    for named in (("--run", "debug_cpu"), ("run.name=debug_cpu",)):
        assert call(folder, *named, run_dir, "--text", "a dog") == EXIT_DONE
        assert "compared by debug-vit of" in capsys.readouterr().out
    assert call(folder, "--run", "none", run_dir, "--text", "a dog") == EXIT_BAD_INPUT
    assert "holds no checkpoint; name a trained run" in capsys.readouterr().err


def embedded(uri, output, clip):
    """What jobs/embed.py stores, without Ray."""
    data, place = open_storage(uri), open_storage(str(output))
    manifest, row = read_manifest(data), clip.architecture
    model = EmbeddingModel(
        address="runs/a", name=row.name, activation=row.activation, image_size_px=32, weights_sha256=weights_sha256(clip)
    )
    about = EmbeddedData(uri=data.uri, version=1, identity=manifest.identity)
    settings = {"captions": ("caption",), "precision": "auto", "dtype": "float32", "embed_dim": row.embed_dim}
    claim_output(place, Embedding(model=model, data=about, **settings))
    embedder = ShardEmbedder(clip, ShardReader(data, manifest), torch.device("cpu"), TrainConfig(), 16, 1)
    for shard in range(len(manifest.shards)):
        assert not embed_shard(embedder, place, "float32", shard).error
    embedder.close()


def test_a_data_set_is_searched_alike_with_stored_features_and_without(data_set, weights, tmp_path, capsys, monkeypatch):
    embedded(data_set, tmp_path / "features", random_clip("debug-vit"))
    words = (data_set, "--weights", weights, "--text", "a red disc", "--top", 5, "--json", "-")
    assert call(*words) == EXIT_DONE
    computed = json.loads(capsys.readouterr().out)["hits"]
    monkeypatch.setattr("training.encoder.Encoder.encode_images", None)  # no image is encoded again
    assert call(*words, "--features", tmp_path / "features") == EXIT_DONE
    stored = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["score"] for hit in stored] == pytest.approx([hit["score"] for hit in computed], abs=2e-6)
    assert all(hit["address"].startswith("http://e.org/") and hit["caption"] for hit in stored)
    other = tmp_path / "other.safetensors"
    save_weights(random_clip("debug-vit", seed=1), other)
    words = (data_set, "--weights", other, "--text", "a", "--features", tmp_path / "features")
    assert call(*words) == EXIT_BAD_INPUT
    assert "are of debug-vit of runs/a, and not of" in capsys.readouterr().err


def test_bad_input_is_refused_with_what_to_give(folder, weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    model, text = ("--weights", weights), ("--text", "a dog")
    cases = {
        (tmp_path / "empty", *model, *text): "holds no image files, and there is no data set; make one with jobs/ingest.py",
        (tmp_path / "none", *model, *text): "there is no such folder",
        (folder, *text): "--run, --weights: no model is named; give --run NAME",
        (folder, "--run", "a", *model, *text): f"--run=a: --weights={weights} names a model too; give one of them",
        (folder, "--run", "a", "run.name=b", *text): "--run=a: run.name=b names a model too",
        (folder, "--run", "a", "model.name=demo", *text): "model.name: has no effect",
        (folder, *model, "--text", " "): "--text: is empty; say what to search for",
        (folder, *model, "--image", tmp_path / "none.png"): "none.png: cannot be read (No such file or directory)",
        (folder, *model, "--image", folder / "broken.jpg"): "cannot be decoded: it is in no format that is known; give another",
        (folder, *model, *text, "--top", 0): "--top=0: must be at least 1",
        (folder, *model, *text, "--page", tmp_path / "none" / "page.html"): "there is no folder",
        (folder, *model, *text, "--features", tmp_path): "holds no features; make them with jobs/embed.py",
        (folder, *model, *text, "model.name=demo"): "does not fit demo",
        (folder, *model, *text, "data.uri=x"): "does not use the section data",
    }
    for words, message in cases.items():
        assert call(*words) == EXIT_BAD_INPUT, words
        assert message in capsys.readouterr().err, words


def test_a_folder_of_broken_images_alone_is_not_what_was_meant(folder, weights, capsys):
    for name in NAMES:
        (folder / name).unlink()
    assert call(folder, "--weights", weights, "--text", "a") == EXIT_NOT_MEANT
    assert "none of its 1 images can be read; give others" in capsys.readouterr().err


def test_text_and_image_exclude_each_other_and_one_is_needed(folder, weights, capsys):
    for words in ((), ("--text", "a", "--image", "b.png")):
        with pytest.raises(SystemExit) as ended:
            call(folder, "--weights", weights, *words)
        assert ended.value.code == EXIT_BAD_INPUT
    assert "--image" in capsys.readouterr().err


def test_a_key_before_the_place_is_answered_with_the_order(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        call("run.name=mine", folder, "--text", "a")
    assert ended.value.code == EXIT_BAD_INPUT
    assert "argument DATA: run.name=mine is a key; name the place first, then the keys" in capsys.readouterr().err


def test_the_help_names_the_place_first(capsys):
    with pytest.raises(SystemExit):
        search.arguments().parse_args(["--help"])
    assert capsys.readouterr().out.startswith("usage: python jobs/search.py DATA [--config RECIPE] [OPTIONS]")

"""A loaded model computes what the jobs compute, from whatever it is loaded and whatever it is given."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import rayclip
from jobs.export import write_export
from jobs.reporting.model_card import Origin
from model.weights import save_weights
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.models import random_clip
from tests.support.runs import ALONE, config_of
from training.config import TrainConfig
from training.data.shard_reader import ShardReader
from training.evaluation.runner import encode_data_set
from training.shard_embedder import ShardEmbedder
from training.trainer import train


def encoded(seed: int, format: str = "PNG") -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(colours).resize((60, 48), Image.Resampling.BICUBIC).save(sink, format)
    return sink.getvalue()


@pytest.fixture(scope="module")
def clip():
    return random_clip("debug-vit")


@pytest.fixture(scope="module")
def export(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_export(folder, clip, Origin("mine", "mine.pt"))
    return folder


@pytest.fixture(scope="module")
def model(export):
    return rayclip.load(export, device="cpu")


def test_features_are_bit_for_bit_those_that_are_embedded_and_evaluated(data_set, clip, model):
    storage = open_storage(data_set)
    embedder = ShardEmbedder(clip, ShardReader(storage, read_manifest(storage)), torch.device("cpu"), TrainConfig(), 256, 1)
    samples = list(rayclip.DataSet(data_set).samples())
    first = 0
    for shard, record in enumerate(read_manifest(storage).shards):
        own = samples[first : first + record.num_samples]
        first += record.num_samples
        embedded = embedder.embed(shard)
        assert embedded.keys == [sample.key for sample in own]
        assert np.array_equal(model.encode_image([sample.image for sample in own]), embedded.image_features_NE)
        assert np.array_equal(model.encode_text([sample.captions[0] for sample in own]), embedded.text_features_NE)
    embedder.close()
    images, texts, _ = encode_data_set(clip, data_set, 256, ALONE)
    assert np.array_equal(model.encode_image(sample.image for sample in samples), images.numpy())
    assert np.array_equal(model.encode_text([sample.captions[0] for sample in samples]), texts.numpy())


def test_images_may_be_paths_bytes_pil_images_or_arrays_one_or_many(model, tmp_path):
    data = encoded(0)
    (tmp_path / "a b.png").write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    forms = [tmp_path / "a b.png", str(tmp_path / "a b.png"), data, opened, np.asarray(opened)]
    alone = model.encode_image(data)
    assert alone.shape == (1, 32)
    for form in forms:
        np.testing.assert_allclose(model.encode_image(form), alone, atol=1e-6)
    np.testing.assert_allclose(model.encode_image(forms), np.repeat(alone, 5, axis=0), atol=1e-6)
    stacked = np.stack([np.asarray(opened)] * 3)
    assert model.encode_image(stacked).shape == (3, 32)
    assert model.encode_image([]).shape == (0, 32)


def test_an_image_that_cannot_be_read_is_named_by_its_place(model, tmp_path):
    with pytest.raises(rayclip.InputError, match=r"^images\[2\]: the image cannot be decoded: it is in no format"):
        model.encode_image([encoded(0), encoded(1), b"nothing", encoded(2)], batch_size=2)
    with pytest.raises(rayclip.InputError, match=r"^images\[0\]=.*none\.png: No such file or directory"):
        model.encode_image(tmp_path / "none.png")
    with pytest.raises(rayclip.InputError, match=r"^images\[0\]: is a int, not an image"):
        model.encode_image([7])


def test_a_damaged_image_can_be_skipped_and_is_named(model, caplog):
    images = [encoded(0), b"nothing", encoded(1)]
    features = model.encode_image(images, on_damage="skip")
    assert np.isnan(features).all(axis=1).tolist() == [False, True, False]
    np.testing.assert_allclose(features[[0, 2]], model.encode_image([images[0], images[2]]), atol=1e-6)
    assert "skipped: images[1]: the image cannot be decoded" in caplog.text
    with pytest.raises(rayclip.ConfigError, match=r"^on_damage='ignore': is not one of fail, skip; give one of them$"):
        model.encode_image(images, on_damage="ignore")


def test_arrays_are_the_default_and_tensors_are_given_on_request(model):
    values = model.encode_text("a dog", as_torch=True)
    assert isinstance(values, torch.Tensor)
    assert np.array_equal(values.numpy(), model.encode_text(["a dog"]))
    assert isinstance(model.encode_image(encoded(0), as_torch=True), torch.Tensor)
    assert isinstance(model.similarity(encoded(0), "a", as_torch=True), torch.Tensor)
    assert isinstance(model.classify(encoded(0), ["a", "b"], as_torch=True), torch.Tensor)


def test_similarity_is_that_of_the_features(model):
    images, texts = [encoded(seed) for seed in range(3)], ["a dog", "two cats"]
    expected = model.encode_image(images) @ model.encode_text(texts).T
    np.testing.assert_allclose(model.similarity(images, texts), expected, atol=1e-6)


def test_classification_is_the_papers_with_the_means_of_prompts(model):
    images, names, templates = [encoded(seed) for seed in range(3)], ["dog", "cat", "bird"], ["a {}.", "art of a {c}."]
    means = np.stack([model.encode_text([template.replace("{}", name).replace("{c}", name) for template in templates]).mean(0)
                      for name in names])  # fmt: skip
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    logits = model.clip.logit_scale.exp().item() * model.encode_image(images) @ means.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = model.classify(images, names, templates)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert model.classify(images, names).shape == (3, 3)


def test_texts_and_names_of_the_wrong_kind_are_refused(model):
    image = encoded(0)
    with pytest.raises(rayclip.InputError, match=r"^class_names='cat': is a text; give a list of names$"):
        model.classify(image, "cat")
    with pytest.raises(rayclip.InputError, match=r"^class_names: is empty; give at least one$"):
        model.classify(image, [])
    with pytest.raises(rayclip.ConfigError, match="has no place for the class name"):
        model.classify(image, ["cat"], ["a photo"])
    with pytest.raises(rayclip.InputError, match=r"^texts: holds None, a NoneType; give texts$"):
        model.encode_text(["a", None])


def test_preprocess_and_tokenize_are_what_the_module_takes(model):
    pixels = model.preprocess(encoded(0))[None]
    with torch.no_grad():
        features = model.clip.encode_image(pixels, normalize=True).numpy()
        texts = model.clip.encode_text(model.tokenize("a dog"), normalize=True).numpy()
    np.testing.assert_allclose(model.encode_image(encoded(0)), features, atol=1e-5)
    np.testing.assert_allclose(model.encode_text("a dog"), texts, atol=1e-5)


def test_a_run_a_checkpoint_an_export_and_weights_are_loaded_without_a_name(clip, export, data_set, tmp_path, monkeypatch):
    train(config_of(data_set, tmp_path / "runs", "train.max_steps=2", "optimizer.warmup_steps=1"), ALONE)
    run = tmp_path / "runs" / "debug_cpu"
    save_weights(clip, tmp_path / "w.safetensors")
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "w.pt")
    shutil.copytree(export / "hf", tmp_path / "hf")
    loaded = rayclip.load(run)
    assert loaded.architecture.name == "debug-vit"
    assert "step_00000002" in repr(loaded)
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert np.array_equal(rayclip.load(checkpoint).encode_text("a"), loaded.encode_text("a"))
    expected = rayclip.load(export).encode_text("a")
    assert np.array_equal(rayclip.load(tmp_path / "w.safetensors").encode_text("a"), expected)
    assert np.array_equal(rayclip.load(tmp_path / "hf").encode_text("a"), expected)
    assert np.array_equal(rayclip.load(tmp_path / "w.pt", activation="quick_gelu").encode_text("a"), expected)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(rayclip.load("w.safetensors").encode_text("a"), expected)
    with pytest.raises(rayclip.ConfigError, match="give quick_gelu"):
        rayclip.load(tmp_path / "w.pt")


def test_what_cannot_be_loaded_is_a_config_error(export, tmp_path):
    with pytest.raises(rayclip.ConfigError, match="there is no such file"):
        rayclip.load(tmp_path / "none")
    with pytest.raises(rayclip.ConfigError, match=r"is not ViT-B/32: .*; its model\.name is debug-vit"):
        rayclip.load(export / "open_clip_model.safetensors", name="ViT-B/32", activation="quick_gelu")
    with pytest.raises(rayclip.ConfigError, match=r"^device=sofa: cannot be used .*; omit it, or give cpu$"):
        rayclip.load(export, device="sofa")


def test_another_precision_and_image_size_may_be_asked_for(export):
    half = rayclip.load(export, device="cpu", precision="bfloat16").encode_text("a dog")
    exact = rayclip.load(export, device="cpu").encode_text("a dog")
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - exact).max() < 0.1
    assert rayclip.load(export, image_size_px=64).preprocess.size_px == 64

"""Features of shards: those of the evaluation, whatever the batches and threads, and no word is lost on what is damaged."""

import threading

import numpy as np
import pytest
import torch

from model.clip import build_clip
from pipeline.dataset.manifest import ManifestError, read_manifest, read_samples
from pipeline.storage.address import open_storage
from training.config import TrainConfig
from training.data.shard_reader import ShardReader
from training.distributed import World
from training.evaluation.runner import encode_data_set
from training.shard_embedder import ShardEmbedder, weights_sha256

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return build_clip("debug-vit").eval()


@pytest.fixture
def embedder_of(clip):
    made = []

    def make(uri, batch_size=8, decode_threads=2, skip_damaged=False):
        storage = open_storage(uri)
        reader = ShardReader(storage, read_manifest(storage))
        made.append(ShardEmbedder(clip, reader, CPU, TrainConfig(), batch_size, decode_threads, skip_damaged))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("batch_size", "decode_threads"), [(8, 1), (7, 3), (100, 2)])
def test_features_are_those_of_the_evaluation_in_any_batches(data_set, clip, embedder_of, batch_size, decode_threads):
    embedder = embedder_of(data_set, batch_size, decode_threads)
    manifest = embedder.reader.manifest
    found = [embedder.embed(shard) for shard in range(len(manifest.shards))]
    images, texts, _ = encode_data_set(clip, data_set, 16, World(0, 1, CPU))
    np.testing.assert_allclose(np.concatenate([one.image_features_NE for one in found]), images.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([one.text_features_NE for one in found]), texts.numpy(), atol=1e-5)
    cosine = torch.diagonal(images @ texts.T).numpy()
    np.testing.assert_allclose(np.concatenate([one.clip_score_N for one in found]), cosine, atol=1e-5)
    for shard, one in zip(manifest.shards, found, strict=True):
        assert one.keys == read_samples(embedder.reader.storage, shard, ["key"])["key"].to_pylist()
        assert not one.problems


def test_two_shards_at_once_get_each_its_own_features(data_set, embedder_of):
    embedder, found = embedder_of(data_set, 4), {}
    threads = [threading.Thread(target=lambda shard=shard: found.update({shard: embedder.embed(shard)})) for shard in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shard in (0, 2):
        alone = embedder.embed(shard)
        assert found[shard].keys == alone.keys
        np.testing.assert_allclose(found[shard].clip_score_N, alone.clip_score_N, atol=1e-6)


def test_a_changed_picture_and_a_cut_tar_are_named_or_noted(make_data_set, tmp_path, embedder_of):
    uri = make_data_set(str(tmp_path / "damaged"), (12, 12))
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    whole = embedder_of(uri)
    before = [whole.embed(shard) for shard in (0, 1)]
    first, second = manifest.shards
    place = read_samples(storage, first, ["jpg_offset", "jpg_size"]).to_pylist()[5]
    tar = storage.local_path(first.tar_path)
    data = bytearray(tar.read_bytes())
    data[place["jpg_offset"] + place["jpg_size"] // 2] ^= 1
    tar.write_bytes(data)
    cut = storage.local_path(second.tar_path)
    cut.write_bytes(cut.read_bytes()[: read_samples(storage, second, ["jpg_offset"]).to_pylist()[9]["jpg_offset"] + 10])

    strict, lenient = embedder_of(uri), embedder_of(uri, skip_damaged=True)
    with pytest.raises(ManifestError, match=f"{first.name}.tar: sample {before[0].keys[5]}: .*sha256 in its sidecar"):
        strict.embed(0)
    with pytest.raises(ManifestError, match=f"{second.name}.tar: sample {before[1].keys[9]}: .*the shard was cut"):
        strict.embed(1)
    for shard, bad in ((0, {5}), (1, {9, 10, 11})):
        found = lenient.embed(shard)
        assert set(found.problems) == bad
        good = [place for place in range(12) if place not in bad]
        assert found.keys == before[shard].keys
        np.testing.assert_allclose(found.image_features_NE[good], before[shard].image_features_NE[good], atol=1e-6)
        np.testing.assert_allclose(found.clip_score_N[good], before[shard].clip_score_N[good], atol=1e-6)


def test_a_models_identity_is_its_weights_and_not_its_file(clip):
    same = build_clip("debug-vit")
    same.load_state_dict({name: tensor.clone() for name, tensor in reversed(clip.state_dict().items())})
    assert weights_sha256(same) == weights_sha256(clip)
    with torch.no_grad():
        same.logit_scale += 1e-3
    assert weights_sha256(same) != weights_sha256(clip)

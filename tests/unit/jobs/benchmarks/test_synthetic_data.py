"""Data that is made: captions as long as the web's, images that decode, a data set that can be trained on."""

from statistics import median

from jobs.benchmarks.synthetic_data import captions, jpegs, write_data_set
from model.tokenizer import tokenize
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from training.data.shard_reader import ShardReader


def test_captions_are_as_long_as_those_of_the_web_and_the_same_for_a_seed():
    texts = captions(500)
    assert texts == captions(500)
    assert texts != captions(500, seed=1)
    lengths = [int((ids != 0).sum()) for ids in tokenize(texts)]
    assert 9 <= median(lengths) <= 15


def test_images_differ_and_are_as_large_as_photographs():
    images = jpegs(3)
    assert len(set(images)) == 3
    assert all(30_000 < len(image) < 70_000 for image in images)


def test_a_data_set_has_all_samples_in_shards_of_the_size_that_was_asked_for(tmp_path):
    size = write_data_set(str(tmp_path), 5, shard_samples=2, distinct_images=2)
    storage = open_storage(str(tmp_path))
    manifest = read_manifest(storage)
    assert [shard.num_samples for shard in manifest.shards] == [2, 2, 1]
    assert size == sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    samples = ShardReader(storage, manifest).read(1, 0, 2)
    assert [sample.caption for sample in samples] == captions(5)[2:4]
    assert samples[0].image.startswith(b"\xff\xd8")

"""Batches of a rank's slice hold every sample once, in order, and an image that cannot be decoded is named."""

import pytest
import torch

from model.image_loading import load_eval_image
from pipeline.dataset.manifest import ManifestError
from tests.support.loaders import keys_of, world
from tests.support.runs import ALONE
from training.data.shard_reader import RawSample
from training.evaluation.evaluation_data import open_image_set
from training.evaluation.image_batches import read_batches
from training.evaluation.image_sets import ImageSet


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_ranks_together_read_every_sample_once_in_order(data_set, world_size):
    images, keys = open_image_set("evaluation.retrieval_uri", data_set, ALONE, ("caption",)), []
    for rank in range(world_size):
        for batch in read_batches(images, 7, 32, world(rank, world_size)):
            assert batch.images.shape == (len(batch.samples), 3, 32, 32)
            assert batch.images.dtype == torch.uint8
            assert len(batch.samples) <= 7
            assert batch.first == len(keys)
            keys += [sample.key for sample in batch.samples]
    assert keys == keys_of(data_set)


def test_images_are_those_of_the_evaluation_transform(data_set):
    images = open_image_set("evaluation.retrieval_uri", data_set, ALONE, ("caption",))
    batch = next(read_batches(images, 7, 32, ALONE))
    for sample, image in zip(batch.samples, batch.images, strict=True):
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(load_eval_image(sample.image, 32)))


class Broken(ImageSet):
    subject, num_samples = "evaluation.retrieval_uri=x", 1

    def read(self, first, stop):
        return [RawSample("a", b"no image", ())]

    def labels(self):
        return [""]


def test_an_image_that_cannot_be_decoded_is_named():
    with pytest.raises(ManifestError, match=r"evaluation\.retrieval_uri=x: sample a: .*; restore it, or remove it"):
        next(read_batches(Broken(), 7, 32, ALONE))

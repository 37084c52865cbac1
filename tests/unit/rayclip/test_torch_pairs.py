"""Pairs for torch: those of the data set, in any order, by workers too."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import rayclip
from model.preprocess import Preprocess
from model.tokenizer import tokenize


def test_pairs_are_the_samples_decoded_and_tokenized(data_set):
    data = rayclip.DataSet(data_set).filter("shape == 'disc'")
    pairs = data.to_torch(Preprocess(32))
    samples = list(data.samples())
    assert len(pairs) == len(samples)
    for index in (0, 3, len(samples) - 1, -1):
        pixels, tokens = pairs[index]
        assert torch.equal(pixels, Preprocess(32)(samples[index].image))
        assert torch.equal(tokens, tokenize(samples[index].captions[0])[0])
    assert data.to_torch()[0][0].shape == (3, 224, 224)


def test_a_batch_of_any_order_is_that_of_the_samples(data_set):
    data = rayclip.DataSet(data_set)
    pairs = data.to_torch(np.array, list, caption_column="shape")  # what the sample holds, undecoded
    order = [*torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist(), 5, 5]
    samples = list(data.samples(["shape"]))
    expected = [(samples[index].image, samples[index].columns["shape"]) for index in order]
    assert [(pixels.item(), shape) for pixels, shape in pairs.__getitems__(order)] == expected


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader_read_everything_once(data_set, context):
    pairs = rayclip.DataSet(data_set).to_torch(Preprocess(32))
    loader = DataLoader(pairs, batch_size=20, shuffle=True, num_workers=1, multiprocessing_context=context)
    batches = list(loader)
    assert [len(pixels) for pixels, _ in batches] == [20, 20, 20, 4]
    found = sorted(map(tuple, torch.cat([tokens for _, tokens in batches]).tolist()))
    assert found == sorted(map(tuple, torch.stack([pairs[index][1] for index in range(64)]).tolist()))


def test_an_index_beyond_the_end_and_an_unknown_column_are_refused(data_set):
    data = rayclip.DataSet(data_set)
    with pytest.raises(IndexError, match="sample 64: the data set has 64"):
        data.to_torch()[64]
    with pytest.raises(rayclip.InputError, match="column alt: "):
        data.to_torch(caption_column="alt")


def test_a_sample_whose_image_cannot_be_decoded_is_named(data_set):
    def refuse(image):
        raise ValueError("the image cannot be decoded")

    with pytest.raises(rayclip.InputError, match="sample 0000000000000000-000000: the image cannot be decoded; remove it"):
        rayclip.DataSet(data_set).to_torch(refuse)[0]

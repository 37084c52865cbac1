"""Equal inputs get one feature, over all ranks, and other features stay as they are to the last bit."""

import numpy as np
import torch

from tests.support.runs import ALONE
from training.distributed import World
from training.evaluation import repeats
from training.evaluation.repeats import captions_of_several_images, first_of_each, key_of, labels_that_differ, share_features


def test_features_without_repeats_are_not_touched():
    features = torch.randn(4, 3)
    assert share_features(features, [b"a", b"b", b"c", b"d"], ALONE) is features
    assert share_features(torch.zeros(0, 3), [], ALONE).shape == (0, 3)


def test_equal_inputs_get_the_features_of_the_first():
    features = torch.arange(10.0).reshape(5, 2)
    shared = share_features(features, [b"a", b"b", b"a", b"c", b"b"], ALONE)
    assert shared.tolist() == [[0, 1], [2, 3], [0, 1], [6, 7], [2, 3]]
    assert features[2].tolist() == [4, 5], "the argument is not changed"


def test_equal_inputs_of_several_ranks_get_the_features_of_the_first_rank(monkeypatch):
    keys = [[b"a", b"b"], [b"b", b"c"], [b"c", b"a"]]
    features = [torch.full((2, 1), 10.0 * rank) + torch.tensor([[1.0], [2.0]]) for rank in range(3)]
    tables = []
    monkeypatch.setattr(repeats, "gather_objects", lambda *_: keys)
    monkeypatch.setattr(repeats, "sum_over_ranks", lambda table, _: tables.append(table) or table)
    worlds = [World(rank=rank, world_size=3, device=torch.device("cpu")) for rank in range(3)]
    for world in worlds:
        share_features(features[world.rank], keys[world.rank], world)
    total = sum(tables)
    monkeypatch.setattr(repeats, "sum_over_ranks", lambda *_: total)
    found = [share_features(features[world.rank], keys[world.rank], world) for world in worlds]
    assert [shared.flatten().tolist() for shared in found] == [[1, 2], [2, 12], [12, 1]]


def test_keys_are_of_the_content():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert key_of(pixels) == key_of(pixels.copy()) == key_of(np.asfortranarray(pixels))
    assert key_of(pixels) != key_of(pixels + 1)
    assert first_of_each(["a", "b", "a", "c", "b"]) == [0, 1, 0, 3, 1]


def test_equal_images_of_several_labels_are_counted(monkeypatch):
    assert labels_that_differ([b"a", b"a", b"b"], ["x", "x", "y"], ALONE) == []
    (note,) = labels_that_differ([b"a", b"a", b"b", b"b", b"c"], ["cat", "dog", "cat", "dog", "cat"], ALONE)
    assert note.startswith("4 of its 5 images have equals in another class (cat, dog), so that an answer is right for one")
    monkeypatch.setattr(repeats, "gather_objects", lambda *_: [[b"a"], [b"a", b"b"]])
    (note,) = labels_that_differ([b"a"], ["x", "y", "y"], World(rank=0, world_size=2, device=torch.device("cpu")))
    assert note.startswith("2 of its 3 images")


def test_captions_of_several_images_are_counted(monkeypatch):
    assert captions_of_several_images([b"a", b"a", b"b"], [2, 1], ALONE) == [], "a caption twice at one image"
    (note,) = captions_of_several_images([b"a", b"b", b"a", b"a"], [2, 1, 1], ALONE)
    assert note.startswith("3 of its 4 captions belong to several images each")
    monkeypatch.setattr(repeats, "gather_objects", lambda *_: [[(b"a", 0)], [(b"a", 0), (b"b", 1)]])
    (note,) = captions_of_several_images([b"a"], [1], World(rank=0, world_size=2, device=torch.device("cpu")))
    assert note.startswith("2 of its 3 captions")

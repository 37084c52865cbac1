"""Gives inputs that are equal one feature, so that they tie exactly.

In: each rank's features and a key for what each was computed from. Out: the same features, where those of equal keys are those
of the first, over all ranks. Otherwise a matrix product rounds equal inputs differently in different batches, and whether they
tie would depend on the batch size, the number of ranks and that of threads.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.distributed import World, gather_objects, sum_over_ranks
from training.evaluation.label_names import some

KEY_BYTES = 16


def key_of(values: NDArray[np.generic]) -> bytes:
    """Returns a key of an array's bytes: pixels, or the token ids of a caption."""
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=KEY_BYTES).digest()


def share_features(features_NE: Tensor, keys: Sequence[bytes], world: World) -> Tensor:
    """Returns the features, equal ones for equal keys of all ranks. Every rank calls it."""
    parts: list[Sequence[bytes]] = gather_objects(list(keys), world)
    every = [key for part in parts for key in part]
    repeated = {key: place for place, key in enumerate(key for key, count in Counter(every).items() if count > 1)}
    if not repeated:
        return features_NE
    before = sum(map(len, parts[: world.rank]))
    firsts = first_of_each(every)
    shared_RE = features_NE.new_zeros(len(repeated), features_NE.shape[1])
    for own, key in enumerate(keys):
        if key in repeated and firsts[before + own] == before + own:
            shared_RE[repeated[key]] = features_NE[own]
    shared_RE = sum_over_ranks(shared_RE, world)  # all other ranks add zeros
    places = [own for own, key in enumerate(keys) if key in repeated]
    features_NE = features_NE.clone()
    if places:
        rows = torch.tensor([repeated[keys[own]] for own in places], device=features_NE.device)
        features_NE[torch.tensor(places, device=features_NE.device)] = shared_RE[rows]
    return features_NE


def first_of_each(keys: Sequence[Hashable]) -> list[int]:
    """Returns, for each key, the index of the first equal one."""
    found: dict[Hashable, int] = {}
    return [found.setdefault(key, place) for place, key in enumerate(keys)]


def labels_that_differ(keys: Sequence[bytes], labels: Sequence[str], world: World) -> list[str]:
    """Returns a sentence if equal images have different labels, as where a class folder is the copy of another.

    Args:
        keys: of this rank's images.
        labels: of the images of all ranks.
    """
    every = [key for part in gather_objects(list(keys), world) for key in part]
    of_key: dict[bytes, set[str]] = defaultdict(set)
    for key, label in zip(every, labels, strict=True):
        of_key[key].add(label)
    together = Counter(tuple(sorted(of_key[key])) for key in every if len(of_key[key]) > 1)
    if not together:
        return []
    commonest = together.most_common(1)[0][0]
    return [
        f"{together.total():,} of its {len(every):,} images have equals in another class ({some(commonest)}), so that an "
        "answer is right for one and wrong for the other"
    ]


def captions_of_several_images(keys: Sequence[bytes], num_captions: Sequence[int], world: World) -> list[str]:
    """Returns a sentence if equal captions belong to different images, where only one image counts as the right answer.

    Args:
        keys: of this rank's captions, as the text encoder reads them.
        num_captions: of each of this rank's images.
    """
    images = [image for image, count in enumerate(num_captions) for _ in range(count)]
    images_of: dict[bytes, set[tuple[int, int]]] = defaultdict(set)
    every: list[bytes] = []
    for rank, part in enumerate(gather_objects(list(zip(keys, images, strict=True)), world)):
        for key, image in part:
            images_of[key].add((rank, image))
            every.append(key)
    shared = sum(len(images_of[key]) > 1 for key in every)
    if not shared:
        return []
    return [
        f"{shared:,} of its {len(every):,} captions belong to several images each, of which only one counts as right: "
        "even a perfect model may stay below 1"
    ]

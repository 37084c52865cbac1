"""Zero-shot classification: a class is the mean feature of its prompts (paper, section 3.1.4).

In: class names, templates, and this rank's image features. Out: counts of right answers per class, and their `Figure`s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import PLACES
from training.distributed import World, failing_together, gather_rows, slice_bounds
from training.evaluation.figures import Figure, mean_of_shares, share

_PLACE = re.compile("|".join(map(re.escape, PLACES)))


def prompts_of(class_name: str, templates: Sequence[str]) -> list[str]:
    """Returns the templates with the class name filled in."""
    return [class_name.join(_PLACE.split(template)) for template in templates]  # a name may hold a place's letters


def build_classifier(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    world: World,
    batch_size: int = 256,
) -> Tensor:
    """Returns a normalised feature for each class, the mean over its prompts: (C, E), on every rank. Ranks share the classes.

    Args:
        encode_text: token ids (B, L) -> normalised features (B, E).
        templates: prompts with `{}` or `{c}` for the class name.
        batch_size: prompts that are encoded at a time.
    """
    first, stop = slice_bounds(len(class_names), world.rank, world.world_size)
    # A rank without classes encodes one anyway, to learn the features' shape.
    names = list(class_names[first:stop]) or [class_names[0]]
    prompts = [prompt for name in names for prompt in prompts_of(name, templates)]
    with failing_together(world):
        features = [
            encode_text(tokenize(prompts[start : start + batch_size])).float() for start in range(0, len(prompts), batch_size)
        ]
        own_CE = F.normalize(torch.cat(features).unflatten(0, (len(names), len(templates))).mean(dim=1), dim=-1)
    return gather_rows(own_CE[: stop - first], len(class_names), world)


def count_right(
    image_features_NE: Tensor, classifier_CE: Tensor, labels_N: Tensor, ks: Sequence[int], first_C: Tensor | None = None
) -> Tensor:
    """Counts the images of each class whose class is among the k that score highest: (K, C), int64.

    A tie counts as a miss, and a NaN score is never right.

    Args:
        first_C: for each class, the first one with the same prompts; equal classes then tie exactly. None: all differ.
    """
    with torch.autocast(image_features_NE.device.type, enabled=False):  # bfloat16 would create ties
        scores = image_features_NE @ classifier_CE.T
    if first_C is not None:
        scores = scores[:, first_C]
    right = scores.gather(1, labels_N[:, None])
    # `not lower` instead of `at least as high`, so that a NaN score counts as a miss.
    ranks = (~(scores < right)).sum(dim=1)
    found = [torch.bincount(labels_N[(ranks <= k) & ~right[:, 0].isnan()], minlength=len(classifier_CE)) for k in ks]
    return torch.stack(found)


def zero_shot_figures(hits_KC: Tensor, count_C: Tensor) -> list[Figure]:
    """Returns top-1 and top-5 accuracy and the mean per-class accuracy, from all ranks' counts for k = 1 and 5."""
    (top1, top5), counts, classes = hits_KC.tolist(), count_C.tolist(), len(count_C)
    return [
        share("zero_shot_top1", sum(top1), sum(counts), 1 / classes),
        share("zero_shot_top5", sum(top5), sum(counts), min(5, classes) / classes),
        mean_of_shares("zero_shot_mean_per_class", top1, counts, 1 / classes),
        Figure("zero_shot_chance", 1 / classes, None, None, None, sum(counts)),
    ]
